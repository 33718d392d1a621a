"""Which of a folder's files are its weights, by their names as diffusers writes them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from latentkit.errors import EncoderError
from latentkit.runtime.hub_places import WEIGHT_SUFFIXES

STEM = "diffusion_pytorch_model"
FILE = re.compile(
    STEM
    + r"(?:\.(?P<before>[\w-]+?))?(?:-\d+-of-(?P<parts>\d+))?(?:\.(?P<after>[\w-]+))?"
    + r"\.(?P<form>safetensors|bin)",
    re.IGNORECASE,
)
"""The variant stands before or after the numbers of a shard."""

INDEX = re.compile(STEM + r"\.(?P<form>safetensors|bin)\.index(?:\.(?P<after>[\w-]+))?\.json")


@dataclass(frozen=True)
class Form:
    """A form of the same weights: `variant` is "" for the plain one, else such as fp16."""

    variant: str
    ending: str


def find_weights(names: Collection[str], any_name: bool = False) -> list[str]:
    """Return names of weights, sorted: those diffusers reads from a folder, or any endings."""
    if any_name:
        return sorted(name for name in names if name.lower().endswith(WEIGHT_SUFFIXES))
    return sorted(name for name in names if FILE.fullmatch(name))


def forms_of(names: Collection[str]) -> dict[Form, list[str]]:
    """Return the names of weights and indexes, sorted, by form; only forms with weights."""
    forms: defaultdict[Form, list[str]] = defaultdict(list)
    for name in sorted(names):
        if found := FILE.fullmatch(name) or INDEX.fullmatch(name):
            parts = found.groupdict()
            form = Form(parts.get("before") or parts["after"] or "", parts["form"].lower())
            forms[form].append(name)
    return {form: files for form, files in forms.items() if find_weights(files)}


def choose_form(forms: Collection[Form], wanted: str | None) -> Form | None:
    """Return the form to take: the plain one before a lone variant, safetensors before .bin; None
    where there is no such variant, or nothing but variants, and more than one.
    """
    variants = {form.variant for form in forms if wanted is None or form.variant == wanted}
    if "" not in variants and len(variants) != 1:
        return None
    variant = "" if "" in variants else variants.pop()
    return max((form for form in forms if form.variant == variant), key=lambda form: form.ending)


def choose_weights(names: Collection[str], where: str, wanted: str | None = None) -> list[str]:
    """Return one form's files: plain before a variant, safetensors before .bin, with index.

    Args:
        where: what messages call the folder.
        wanted: the variant that is to be taken; None: the plain form, else the only one there is.

    Raises:
        EncoderError: there is no such variant, or nothing but variants, and more than one.
    """
    forms = forms_of(names)
    chosen = choose_form(forms, wanted)
    if chosen is None:
        variants = sorted({form.variant for form in forms})
        if wanted is not None:
            there = ", ".join(name or "plain" for name in variants)
            raise EncoderError(
                f"{where} has no variant {wanted!r} of the weights; there is {there}"
            )
        advice = f"choose by the option variant, such as variant: {variants[0]}"
        raise EncoderError(f"{where} has its weights as {' and '.join(variants)} only; {advice}")
    files = forms[chosen]
    whole = [name for name in files if "-of-" not in name]
    has_index = any(name.endswith(".json") for name in files)
    return files if has_index or not whole else whole


def shards_of(index: Any, chosen: Collection[str], where: str) -> list[str]:
    """The files that the index of weights in several files names, sorted.

    Args:
        index: as read from its JSON.
        chosen: names of the files there.
        where: what messages call the index.

    Raises:
        EncoderError: it is no index, or names a file that isn't there.
    """
    weight_map = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise EncoderError(
            f"{where} has no weight_map; expected the index of a sharded checkpoint"
        )
    shards = sorted({str(name) for name in weight_map.values()})
    if missing := [name for name in shards if name not in chosen]:
        raise EncoderError(
            f"{where} names {missing[0]}, which isn't there: the upload is not complete"
        )
    return shards

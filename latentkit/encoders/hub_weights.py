"""Chooses a folder's weight files by their names, which are those that diffusers writes."""

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
"""The variant is before or after the numbers of a shard."""

INDEX = re.compile(STEM + r"\.(?P<form>safetensors|bin)\.index(?:\.(?P<after>[\w-]+))?\.json")


@dataclass(frozen=True)
class Form:
    """One of the formats in which a folder has the same weights. `variant` is "" for the plain
    ones, or for example "fp16".
    """

    variant: str
    ending: str


def find_weights(names: Collection[str], any_name: bool = False) -> list[str]:
    """Return the names of weight files, sorted: those that diffusers reads from a folder, or any
    with a usual ending.
    """
    if any_name:
        return sorted(name for name in names if name.lower().endswith(WEIGHT_SUFFIXES))
    return sorted(name for name in names if FILE.fullmatch(name))


def group_by_form(names: Collection[str]) -> dict[Form, list[str]]:
    """Group the names of weight files, and of their index, by form. Forms without weights are left
    out.
    """
    forms: defaultdict[Form, list[str]] = defaultdict(list)
    for name in sorted(names):
        if found := FILE.fullmatch(name) or INDEX.fullmatch(name):
            parts = found.groupdict()
            form = Form(parts.get("before") or parts["after"] or "", parts["form"].lower())
            forms[form].append(name)
    return {form: files for form, files in forms.items() if find_weights(files)}


def choose_form(forms: Collection[Form], wanted: str | None) -> Form | None:
    """Return the form to use: plain before a single variant, safetensors before .bin.

    Return None if the wanted variant is missing, or if there are several variants and no plain
    form.
    """
    variants = {form.variant for form in forms if wanted is None or form.variant == wanted}
    if "" not in variants and len(variants) != 1:
        return None
    variant = "" if "" in variants else variants.pop()
    return max((form for form in forms if form.variant == variant), key=lambda form: form.ending)


def choose_weights(names: Collection[str], where: str, wanted: str | None = None) -> list[str]:
    """Return the files of one form, and the index if there are several: plain before a variant,
    safetensors before .bin.

    Args:
        names: names of a folder's files.
        where: the folder's name in messages.
        wanted: the variant to use; None uses the plain form, or else the only one there is.

    Raises:
        EncoderError: the variant is missing, or there are several and no plain form.
    """
    forms = group_by_form(names)
    chosen = choose_form(forms, wanted)
    if chosen is None:
        variants = sorted({form.variant for form in forms})
        if wanted is not None:
            there = ", ".join(name or "plain" for name in variants)
            raise EncoderError(f"{where} has no weights of variant {wanted!r}; available: {there}")
        advice = f"choose by the option variant, such as variant: {variants[0]}"
        raise EncoderError(f"{where} has its weights only as {' and '.join(variants)}; {advice}")
    files = forms[chosen]
    whole = [name for name in files if "-of-" not in name]
    has_index = any(name.endswith(".json") for name in files)
    return files if has_index or not whole else whole


def list_shards(index: Any, chosen: Collection[str], where: str) -> list[str]:
    """Return the sorted names of the files that a shard index lists.

    Args:
        index: content of the index, parsed from JSON.
        chosen: names of the existing files.
        where: the index's name in messages.

    Raises:
        EncoderError: this is no index, or it lists a file that is missing.
    """
    weight_map = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise EncoderError(f"{where} has no weight_map; expected the index of a sharded checkpoint")
    shards = sorted({str(name) for name in weight_map.values()})
    if missing := [name for name in shards if name not in chosen]:
        raise EncoderError(
            f"{where} lists {missing[0]}, which is missing: the upload is incomplete"
        )
    return shards

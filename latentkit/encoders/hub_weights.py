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
    + r"(?:\.(?P<before>[\w-]+?))?(?:-\d+-of-\d+)?(?:\.(?P<after>[\w-]+))?"
    + r"\.(?P<form>safetensors|bin)"
)
INDEX = re.compile(STEM + r"\.(?P<form>safetensors|bin)\.index(?:\.(?P<after>[\w-]+))?\.json")


@dataclass(frozen=True)
class Form:
    """One of the forms that the same weights may have: `variant` is "" for the plain one, else such
    as fp16.
    """

    variant: str
    ending: str


def find_weights(names: Collection[str], any_name: bool = False) -> list[str]:
    """The names of files of weights, sorted: those that diffusers reads from a folder, or any by
    their endings.
    """
    if any_name:
        return sorted(name for name in names if name.lower().endswith(WEIGHT_SUFFIXES))
    return sorted(name for name in names if FILE.fullmatch(name))


def choose_weights(names: Collection[str], where: str, wanted: str | None = None) -> list[str]:
    """The files of one form: plain before a variant, safetensors before .bin; with the index of
    several files, if there is one.

    Args:
        names: of a folder's files.
        where: what messages call the folder.
        wanted: the variant that is to be taken; None: the plain form, else the only one there is.

    Raises:
        EncoderError: there is no such variant, or nothing but variants, and more than one.
    """
    forms: defaultdict[Form, list[str]] = defaultdict(list)
    for name in sorted(names):
        if found := FILE.fullmatch(name) or INDEX.fullmatch(name):
            parts = found.groupdict()
            forms[Form(parts.get("before") or parts["after"] or "", parts["form"])].append(name)
    held = {form: files for form, files in forms.items() if find_weights(files)}
    variants = sorted({form.variant for form in held})
    if wanted is not None and wanted not in variants:
        there = ", ".join(name or "plain" for name in variants)
        raise EncoderError(f"{where} has no variant {wanted!r} of the weights; there is {there}")
    if wanted is None and "" not in variants and len(variants) > 1:
        advice = f"choose by the option variant, such as variant: {variants[0]}"
        raise EncoderError(f"{where} has its weights as {' and '.join(variants)} only; {advice}")
    variant = wanted if wanted is not None else "" if "" in variants else variants[0]
    ending = "safetensors" if Form(variant, "safetensors") in held else "bin"
    files_of_form = held[Form(variant, ending)]
    index = [name for name in files_of_form if name.endswith(".json")]
    whole = [name for name in files_of_form if not name.endswith(".json") and "-of-" not in name]
    if index or not whole:
        return files_of_form
    return whole


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
            f"{where} has no weight_map; expected the index of weights in several files"
        )
    shards = sorted({str(name) for name in weight_map.values()})
    if missing := [name for name in shards if name not in chosen]:
        raise EncoderError(
            f"{where} names {missing[0]}, which isn't there: the upload is not complete"
        )
    return shards

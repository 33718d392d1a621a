"""Which tensors of a file are latents, by the names that caches give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from latentkit.contracts import KnownLatents, Normalization
from latentkit.errors import SourceError
from latentkit.sources.latent_options import TensorNamesConfig
from latentkit.sources.latent_source import LatentSource, without_batch_axis

FLIPPED = ("_flip", "_flipped", "_hflip")
"""Endings of the names of what is mirrored."""

DESCRIPTION = "latents.json"
"""What latentkit's own exports say of their values."""

Views = dict[str, dict[str, Tensor]]


def views_of(
    tensors: Mapping[str, Tensor], config: TensorNamesConfig, view: str, num_axes: int
) -> Views:
    """Return the latents among the tensors of a file, by view.

    Args:
        view: the one that the file is.
        num_axes: of a latent, by which a batch axis of one is told; 0: of an image.

    Raises:
        ValueError: none is found, or rows have a mask.
    """
    if (odd := next((name for name in tensors if name.endswith("_mask")), None)) is not None:
        raise ValueError(f"it has {odd!r}: rows of various lengths can't be imported")
    mirrored = {
        name.removesuffix(end): tensor
        for end in FLIPPED
        for name, tensor in tensors.items()
        if name.endswith(end)
    }
    plain = {name: one for name, one in tensors.items() if not name.endswith(FLIPPED)}
    found = {view: _pick(plain, config, num_axes)}
    return found | ({"hflip": _pick(mirrored, config, num_axes)} if mirrored else {})


def _pick(tensors: Mapping[str, Tensor], config: TensorNamesConfig, num_axes: int) -> Any:
    spread = next((name for name in ("logvar", "std") if name in tensors), None)
    if config.latent is None and "mean" in tensors and spread is not None:
        pair = {name: tensors[name] for name in ("mean", spread)}
        return {name: without_batch_axis(one, num_axes or 3) for name, one in pair.items()}
    wanted = (
        [config.latent]
        if config.latent is not None
        else ["moments", "latent", "latents", *(tensors if len(tensors) == 1 else ())]
    )
    name = next((name for name in wanted if name in tensors), None)
    if name is None:
        raise ValueError(
            f"no tensor {wanted[0]!r} among {sorted(tensors)}; name the latent's with"
            " source.with.latent"
            if config.latent is not None
            else f"which of the tensors {sorted(tensors)} is the latent isn't clear; name it with"
            " source.with.latent"
        )
    tensor = without_batch_axis(tensors[name], num_axes or 3)
    stacked = config.stacked or ("logvar" if name == "moments" else None)
    return {"latent": tensor} if stacked is None else LatentSource.split_moments(tensor, stacked)


def read_known(folder: Path) -> KnownLatents:
    """Return what latentkit's own exports say of their values; nothing where there is no such file.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        text = (folder / DESCRIPTION).read_text(encoding="utf-8")
    except FileNotFoundError:
        return KnownLatents()
    try:
        said = json.loads(text)
        downscale = said["layout"]["downscale"]
        return KnownLatents(
            Normalization(**said["normalization"]),
            said["values"] == "latent",
            tuple(downscale) if isinstance(downscale, list) else downscale,
            said["layout"]["axes"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{folder / DESCRIPTION}: expected what latentkit export writes; {error}. Remove it to"
            " import without what it says"
        ) from error

"""Raw latents of whatever a dataset gives: latents, stored moments, indices; a row or a batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization

NAMES = ("latent", "mean", "moments", "indices")


def find_raw_latents(
    given: Tensor | Mapping[str, Any],
    layout: LatentLayout,
    normalization: Normalization,
    takes_moments: bool,
) -> tuple[Tensor, bool]:
    """Return raw latents or indices, as a decoder takes them, and whether they are of a single row,
    which then is a batch of one.

    Args:
        given: an item, a batch, what `LatentDataset.moments` gave, or a tensor of one of these.
            Of moments the mean is taken.
        takes_moments: whether a tensor of twice the channels is moments; else a tensor is
            normalized latents.

    Raises:
        ValueError: a mapping without latents, or a tensor of another shape.
    """
    name, values = _find(given)
    is_single = values.ndim == len(layout.axes)
    if layout.kind == "quantised" and values.ndim >= len(layout.axes):
        # Its decoder knows which shapes it takes.
        return (values[None] if is_single else values), is_single
    if values.ndim not in (len(layout.axes), len(layout.axes) + 1):
        raise ValueError(
            f"expected {name} of axes {layout.axes}, or a batch of them, got shape"
            f" {tuple(values.shape)}"
        )
    batch = values[None] if is_single else values
    num_channels = batch.shape[1]
    normalized = layout.channels * math.prod(normalization.fold.values())
    expected = {"mean": layout.channels, "moments": 2 * layout.channels}.get(name, normalized)
    if name == "latent" and takes_moments and num_channels == 2 * layout.channels:
        name = "moments"
    elif num_channels != expected:
        raise ValueError(
            f"expected {name} of {expected} channels, got {num_channels} (shape"
            f" {tuple(values.shape)}, axes {layout.axes})"
        )
    if name == "latent":
        return normalization.invert(batch, layout.axes), is_single
    return batch[:, : layout.channels].float(), is_single


def _find(given: Tensor | Mapping[str, Any]) -> tuple[str, Tensor]:
    """The tensor, and what it is."""
    if isinstance(given, Tensor):
        return "latent", given
    if isinstance(given, Mapping):
        for name in NAMES:
            if isinstance(given.get(name), Tensor):
                return name, given[name]
        raise ValueError(
            f"expected a mapping with {', '.join(NAMES[:-1])} or {NAMES[-1]}, got one with"
            f" {', '.join(map(str, given))}; of joined datasets, give one's tensor"
        )
    raise ValueError(
        f"expected a tensor, an item, a batch or what moments gave, got {type(given).__name__}"
    )

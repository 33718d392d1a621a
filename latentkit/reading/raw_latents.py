"""Recovers raw latents from what a dataset returns: latents, stored moments or indices, as a row or
a batch.
"""

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
    """Return raw latents or indices as a decoder takes them, and whether they are one row, which
    becomes a batch of one.

    Args:
        given: an item, a batch, the result of `LatentDataset.moments`, or a tensor from one of
            these. The mean of moments is used.
        takes_moments: whether a tensor with twice the channels contains moments; other tensors are
            normalized latents.

    Raises:
        ValueError: the mapping contains no latents, or the tensor has another shape.
    """
    name, values = _find(given)
    is_single = values.ndim == len(layout.axes)
    if layout.kind == "quantised" and values.ndim >= len(layout.axes):
        # The decoder checks other axes.
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
    """Return the name and the tensor."""
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
        f"expected a tensor, an item, a batch or a result of moments, got {type(given).__name__}"
    )

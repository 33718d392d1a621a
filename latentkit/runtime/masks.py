"""Masks say which positions of a row count: masks of prepared rows, and of latents.

A mask covers the first axes after the channels, (L,) of a row (C, L), (T,) of (C, T, H, W), (D, H,
W) of (C, D, H, W); of a layout with a ragged axis, (L,) is that axis. Batches have one axis more,
N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latentkit.contracts.encoder_description import LatentLayout
from latentkit.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor

MASK = "mask"
"""Name of the mask among the tensors of a row."""


def without_mask(rows: Tensor | Mapping[str, Tensor]) -> Tensor | None:
    """Return the one tensor of a prepared row or batch that isn't the mask; None if it has several.
    """
    if not isinstance(rows, Mapping):
        return rows
    others = [name for name in rows if name != MASK]
    return rows[others[0]] if len(others) == 1 else None


def mask_of(rows: Tensor | Mapping[str, Tensor]) -> Tensor | None:
    """Return the mask of a prepared row or batch, bool; None if every position counts."""
    return rows[MASK].bool() if isinstance(rows, Mapping) and MASK in rows else None


def pool_mask(mask: Tensor, factors: Sequence[int | float], causal: Sequence[bool] = ()) -> Tensor:
    """Return (N, ...) bool at the size of latents: True where any input position counts.

    Args:
        mask: (N, ...) bool.
        factors: input positions per latent position, for each axis except N.
        causal: for each of these axes, whether its first position becomes a latent of its own, as
            in videos of 4 k + 1 frames with a factor of 4; empty: for none.

    Raises:
        EncoderError: a factor isn't a whole number, so that only the encoder can give the mask.
    """
    from torch.nn import functional

    if len(mask) > 1 and not mask.stride(0):  # one mask for all rows
        return pool_mask(mask[:1], factors, causal).expand(len(mask), *([-1] * (mask.ndim - 1)))
    for axis, factor in enumerate(factors, start=1):
        if not isinstance(factor, int):
            raise EncoderError(
                f"rows have a mask, and {factor} positions of the input become one latent: let"
                " encode return its own 'mask'"
            )
        if factor > 1:
            last = mask.movedim(axis, -1)
            missing = -last.shape[-1] % factor
            whole = functional.pad(
                last, (missing, 0) if causal and causal[axis - 1] else (0, missing)
            )
            mask = _any_of_last(whole.reshape(*whole.shape[:-1], -1, factor)).movedim(-1, axis)
    return mask


def _any_of_last(mask: Tensor) -> Tensor:
    """Return `mask.any(-1)`, computed by numpy on a CPU, where torch takes 30 times as long."""
    import torch

    return torch.from_numpy(mask.numpy().any(-1)) if mask.device.type == "cpu" else mask.any(-1)


def masked_axes(layout: LatentLayout, num_axes: int) -> str:
    """Return the letters of the latent axes that a mask with this number of axes (without N)
    covers.
    """
    if layout.ragged_axis and num_axes == 1:
        return layout.ragged_axis
    return layout.axes.replace("C", "")[:num_axes]


def counted_positions(values: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Return the positions of (N, C, ...) that count: (positions, C, axes without a mask)."""
    counted: npt.NDArray[Any] = np.moveaxis(values, 1, mask.ndim)[mask]
    return counted

"""The arithmetic of `contracts.Normalization`, on torch tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Constant = float | Sequence[Any]


def apply(
    shift: Constant, scale: Constant, factors: Mapping[str, int], latents: Tensor, axes: str
) -> Tensor:
    """Return (fold(z) - shift) * scale of raw latents z, (..., C, h, w); axes before `axes` are
    batch axes.
    """
    folded = fold(latents, axes, factors)
    return (folded - _constant(shift, folded, axes)) * _constant(scale, folded, axes)


def invert(
    shift: Constant, scale: Constant, factors: Mapping[str, int], latents: Tensor, axes: str
) -> Tensor:
    """Return the raw latents for which `apply` returns `latents`."""
    raw = latents / _constant(scale, latents, axes) + _constant(shift, latents, axes)
    return unfold(raw, axes, factors)


def fold(latents: Tensor, axes: str, factors: Mapping[str, int]) -> Tensor:
    """Move a factor of each named axis into channels: (..., C, h, w) to (..., C * fh * fw, h / fh,
    w / fw).

    The order of the new channels is (C, fh, fw), that of FLUX.2's patchified latents
    (`Flux2Pipeline._patchify_latents` in diffusers).

    Raises:
        ValueError: an axis that its factor doesn't divide.
    """
    if not factors:
        return latents
    lead, sizes = latents.shape[: -len(axes)], latents.shape[-len(axes) :]
    parts, inner, outer = [sizes[0]], [], []
    for axis, size in zip(axes[1:], sizes[1:], strict=True):
        factor = factors.get(axis, 1)
        if size % factor:
            raise ValueError(f"axis {axis} of size {size} can't be folded by {factor}")
        outer.append(len(parts))
        inner.append(len(parts) + 1)
        parts += [size // factor, factor]
    split = latents.reshape(-1, *parts)
    moved = split.permute(0, 1, *(i + 1 for i in inner), *(i + 1 for i in outer))
    channels = sizes[0] * math.prod(factors.get(axis, 1) for axis in axes[1:])
    return moved.reshape(*lead, channels, *(parts[i] for i in outer))


def unfold(latents: Tensor, axes: str, factors: Mapping[str, int]) -> Tensor:
    """Move channels back into the axes they were folded from: (..., C * fh * fw, h, w) to (..., C,
    h * fh, w * fw).
    """
    if not factors:
        return latents
    lead, sizes = latents.shape[: -len(axes)], latents.shape[-len(axes) :]
    per_axis = [factors.get(axis, 1) for axis in axes[1:]]
    count = len(per_axis)
    # (N, C, fh, fw, h, w) becomes (N, C, h, fh, w, fw).
    split = latents.reshape(-1, sizes[0] // math.prod(per_axis), *per_axis, *sizes[1:])
    order = [0, 1] + [place for i in range(count) for place in (2 + count + i, 2 + i)]
    unfolded = (size * factor for size, factor in zip(sizes[1:], per_axis, strict=True))
    return split.permute(order).reshape(*lead, split.shape[1], *unfolded)


def cut_to(constant: Any, sizes: Sequence[int], axes: str) -> Any:
    """Return the first values of a shift or scale, for a latent of these sizes.

    A shift with values per frame, for example, has them for the longest clip; shorter clips use the
    first values.

    Raises:
        ValueError: the latent is longer.
    """
    if constant.ndim != len(axes):
        return constant
    for axis, size, most in zip(axes[1:], sizes[1:], constant.shape[1:], strict=True):
        if 1 < most < size:
            raise ValueError(
                f"axis {axis} of size {size} is longer than the shifts and scales, which have"
                f" {most} values"
            )
    return constant[tuple(slice(size) for size in sizes)]


def _constant(value: object, like: Tensor, axes: str) -> Tensor | float:
    """Return a shift or scale that broadcasts over the latents `like`."""
    if isinstance(value, int | float):
        return float(value)
    constant = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if constant.ndim == 1:
        return constant.reshape(-1, *[1] * (len(axes) - 1))
    cut: Tensor = cut_to(constant, like.shape[-len(axes) :], axes)
    return cut

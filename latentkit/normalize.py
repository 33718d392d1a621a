"""The arithmetic of `contracts.Normalization`, on torch tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from latentkit.contracts import Normalization


def apply(normalization: Normalization, latents: Tensor, axes: str) -> Tensor:
    """(fold(z) - shift) * scale of raw latents (..., C, h, w); the axes before `axes` are batch axes."""
    folded = fold(latents, axes, normalization.fold)
    shift, scale = _constants(normalization, folded, len(axes))
    return (folded - shift) * scale


def invert(normalization: Normalization, latents: Tensor, axes: str) -> Tensor:
    """Raw latents whose `apply` is `latents`."""
    shift, scale = _constants(normalization, latents, len(axes))
    return unfold(latents / scale + shift, axes, normalization.fold)


def fold(latents: Tensor, axes: str, factors: Mapping[str, int]) -> Tensor:
    """Move a factor of each named axis into channels: (..., C, h, w) to (..., C * fh * fw, h / fh, w / fw).

    The order of the new channels is (C, fh, fw), that of FLUX.2's patchified latents (`Flux2Pipeline._patchify_latents` in diffusers).

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
    """The inverse of `fold`."""
    if not factors:
        return latents
    lead, sizes = latents.shape[: -len(axes)], latents.shape[-len(axes) :]
    rest = [factors.get(axis, 1) for axis in axes[1:]]
    count = len(rest)
    split = latents.reshape(-1, sizes[0] // math.prod(rest), *rest, *sizes[1:])
    order = [0, 1] + [place for i in range(count) for place in (2 + count + i, 2 + i)]
    return split.permute(order).reshape(*lead, split.shape[1], *(s * f for s, f in zip(sizes[1:], rest, strict=True)))


def _constants(normalization: Normalization, like: Tensor, num_axes: int) -> tuple[Tensor | float, Tensor | float]:
    return _constant(normalization.shift, like, num_axes), _constant(normalization.scale, like, num_axes)


def _constant(value: object, like: Tensor, num_axes: int) -> Tensor | float:
    if isinstance(value, int | float):
        return float(value)
    constant = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if constant.ndim == 1:
        return constant.reshape(-1, *[1] * (num_axes - 1))
    if constant.ndim == num_axes:  # per frame, say, of the longest film: shorter ones have its first frames
        return constant[tuple(slice(size) for size in like.shape[-num_axes:])]
    return constant

"""Stored rows to what a trainer sees: the draw or the mean, normalised. Everything works in place on whole batches."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization
from latentkit.normalize import fold

Posterior = Literal["sample", "mean", "moments"]


def draw(moments: Tensor, generator: torch.Generator, out: Tensor) -> Tensor:
    """One draw per row from moments (N, 2C, ...), mean then logvar: mean + exp(logvar / 2) * noise, float32, in `out` (N, C, ...)."""
    channels = moments.shape[1] // 2
    out.normal_(generator=generator)
    deviation = moments[:, channels:].float().mul_(0.5).exp_()
    return out.mul_(deviation).add_(moments[:, :channels])


class Normalizer:
    """`Normalization.apply` for float32 batches that may be overwritten, its constants made once."""

    def __init__(self, normalization: Normalization, layout: LatentLayout) -> None:
        self.normalization = normalization
        self.axes = layout.axes
        self._shift = _constant(normalization.shift, len(layout.axes))
        self._scale = _constant(normalization.scale, len(layout.axes))
        self._shifts = bool((self._shift != 0).any())
        self._scales = bool((self._scale != 1).any())

    def __call__(self, latents: Tensor) -> Tensor:
        """(fold(z) - shift) * scale of float32 raw latents (N, C, ...), which are overwritten."""
        folded = fold(latents, self.axes, self.normalization.fold)
        if self._shifts:
            folded.sub_(self._shift)
        if self._scales:
            folded.mul_(self._scale)
        return folded


def _constant(value: object, num_axes: int) -> Tensor:
    constant = torch.as_tensor(value, dtype=torch.float32)
    return constant.reshape(-1, *[1] * (num_axes - 1)) if constant.ndim == 1 else constant

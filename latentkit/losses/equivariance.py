"""Loss `equivariance`: latents that are shrunk or turned decode to images that are shrunk or
turned.

Kouzelis et al. 2025, "EQ-VAE: Equivariance Regularized Latent Space for Improved Generative Image
Modeling". The paper replaces the plain reconstruction loss; here equivariance is a second
term with a weight of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import l1

if TYPE_CHECKING:
    from latentkit.losses.options import EquivarianceConfig

STEPS = 32
"""Scales are multiples of 1 / STEPS, as in the authors' code."""


class Equivariance:
    """Mean absolute error between decoded transformed latents and transformed inputs; 0 in the
    steps that are left out.

    Scale and rotation are the same for a whole batch, since they decide its shape. They depend on
    seed and step alone: all processes draw the same and call the model equally often, and a resumed
    run draws the same as an uninterrupted one.
    """

    def __init__(self, config: EquivarianceConfig, seed: int) -> None:
        low, high = config.scales
        self._scales = [
            part / STEPS for part in range(1, STEPS + 1) if low <= part / STEPS < high
        ] or [low]
        self._p, self._rotate, self._seed = config.p, config.rotate, seed

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, in units of the input's range.

        Raises:
            TrainingError: the latents are not maps, (N, C, h, w).
        """
        latents = batch.reconstruction.latents
        if latents.ndim != 4:
            raise TrainingError(
                "loss 'equivariance': expected latents of images, (N, C, h, w), got"
                f" {tuple(latents.shape)}"
            )
        drawn = self.draw(batch.step)
        if drawn is None:
            return latents.new_zeros(len(latents))
        scale, turns = drawn
        height, width = (max(1, round(side * scale)) for side in latents.shape[2:])
        output = batch.decode(change(latents, (height, width), turns))
        size = output.shape[:1:-1] if turns % 2 else output.shape[2:]
        inputs = change(batch.inputs, (size[0], size[1]), turns)
        mask = (
            None
            if batch.mask is None
            else (change(batch.mask.float(), (size[0], size[1]), turns) >= 0.5).float()
        )
        return l1(
            replace(
                batch,
                inputs=inputs,
                reconstruction=replace(batch.reconstruction, output=output),
                mask=mask,
            )
        )

    def draw(self, step: int) -> tuple[float, int] | None:
        """Draw a step's scale and number of quarter turns; None when the step is left out."""
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**63)
        uniform = float(torch.rand((), generator=generator))
        scale = self._scales[int(torch.randint(len(self._scales), (), generator=generator))]
        turns = int(torch.randint(4, (), generator=generator)) if self._rotate else 0
        return (scale, turns) if uniform < self._p else None


def change(values: Tensor, size: tuple[int, int], turns: int) -> Tensor:
    """Resize (N, C, H, W) bilinearly, then turn it by `turns` times 90 degrees, anticlockwise."""
    return torch.rot90(
        interpolate(values, size, mode="bilinear", align_corners=False), turns, (2, 3)
    )

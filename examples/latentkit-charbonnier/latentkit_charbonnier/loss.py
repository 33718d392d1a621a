"""Loss `charbonnier`: sqrt(error^2 + width^2) - width, of Charbonnier et al.

1994, "Two deterministic half-quadratic regularization".
"""

from __future__ import annotations

from latentkit.contracts import LossBatch
from torch import Tensor


class Charbonnier:
    def __init__(self, width: float) -> None:
        self._width = width

    def __call__(self, batch: LossBatch) -> Tensor:
        """(N,) float32: one value per sample, per input value."""
        errors = batch.reconstruction.output.float() - batch.inputs.float()
        values = (errors.square() + self._width**2).sqrt() - self._width
        if batch.mask is None:
            return values.flatten(1).mean(1)
        mask = batch.mask.expand_as(values)
        return (values * mask).flatten(1).sum(1) / mask.flatten(1).sum(1)

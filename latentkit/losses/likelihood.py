"""Losses `laplace-nll` and `gaussian-nll`: the negative log likelihood of the input, in nats per
input value.

With them the weight of `kl` is the beta of the beta-VAE (Higgins et al. 2017, eq. 4), and 1.0 is
the ELBO. The likelihood is that of a density over continuous values, so it can be above 1 and its
nats below 0.

The scale of the errors is fixed, learned as one parameter (Rombach et al. 2022, whose code starts
it at 1), or the best one for each batch (Rybkin et al. 2021, "Simple and Effective VAE Training
with Calibrated Decoders": the variance is the mean squared error). A batch is what one process
passes forward at once. Computed and learned scales stay above e^-6, as in that paper's code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from latentkit.contracts import Loss, LossBatch
from latentkit.losses.options import LOWEST_LOG_SCALE
from latentkit.losses.reconstruction import l1, mse

if TYPE_CHECKING:
    from latentkit.losses.options import LikelihoodConfig


@dataclass(frozen=True)
class Family:
    """The density exp(-|e / s|^power / power) / (c s) of an error e, with the scale s: Laplace for
    power 1, Gaussian for 2.

    Args:
        distance: mean of |e|^power over a sample's values, (N,).
        power: exponent of the error.
        log_constant: ln c.
    """

    distance: Loss
    power: int
    log_constant: float

    def nll(self, distances: Tensor, log_scale: Tensor) -> Tensor:
        """Return nats per value, (N,), for mean distances (N,) and one log scale, ()."""
        return (
            distances * torch.exp(-self.power * log_scale) / self.power
            + log_scale
            + self.log_constant
        )


LAPLACE = Family(l1, 1, math.log(2))
GAUSSIAN = Family(mse, 2, 0.5 * math.log(2 * math.pi))


def open_nll(family: Family, config: LikelihoodConfig) -> Loss:
    """Build the likelihood loss with a recipe's scale: fixed, learned, or the best for each batch.
    """
    if config.scale == "optimal":
        return OptimalScale(family)
    if config.scale == "learned":
        return LearnedScale(family, config.initial_scale)
    return FixedScale(family, float(config.scale))


@dataclass(frozen=True)
class FixedScale:
    """Negative log likelihood at a fixed scale: a constant times the distance, plus a constant."""

    family: Family
    scale: float

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, nats per input value."""
        distances = self.family.distance(batch)
        return self.family.nll(distances, distances.new_tensor(math.log(self.scale)))


@dataclass(frozen=True)
class OptimalScale:
    """Negative log likelihood at the scale that minimizes it for the batch.

    The scale is detached: at the minimum the derivative by the scale is zero, so the gradient of
    the batch's mean doesn't change.
    """

    family: Family

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, nats per input value."""
        distances = self.family.distance(batch)
        log_scale = distances.detach().mean().log() / self.family.power
        return self.family.nll(distances, log_scale.clamp(min=LOWEST_LOG_SCALE))


class LearnedScale:
    """Negative log likelihood at a scale that is trained with the model."""

    def __init__(self, family: Family, initial_scale: float) -> None:
        self.module: nn.Module = LogScale(initial_scale)
        self._family = family

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, nats per input value."""
        return self._family.nll(self._family.distance(batch), self.module())


class LogScale(nn.Module):
    """The log of a trained scale: softplus keeps it above the lowest and differentiable."""

    def __init__(self, initial_scale: float) -> None:
        super().__init__()
        start = math.log(math.expm1(math.log(initial_scale) - LOWEST_LOG_SCALE))
        self.raw = nn.Parameter(torch.tensor(start))

    def forward(self) -> Tensor:
        """Return the natural log of the scale, () float32."""
        return LOWEST_LOG_SCALE + softplus(self.raw.float())

"""Loss `kl`: the rate of a KL autoencoder, in nats per input value.

The unit makes weights comparable: with reconstruction losses that are means over a sample's values,
the weight of `kl` is the beta of the summed objective (Higgins et al. 2017, "beta-VAE", eq. 4), and
1e-6 means what it means in Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", whose code sums both terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkit.contracts import LossBatch, Moments
from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import num_values

if TYPE_CHECKING:
    from latentkit.losses.options import AnnealConfig


@dataclass(frozen=True)
class Kl:
    """KL(q || N(0, I)) of each sample's posterior over its number of input values.

    Args:
        free_bits: nats per latent value that are free. A channel's KL, averaged over the positions
            of one sample, costs at least this and has no gradient below it: Kingma et al. 2016,
            "Improving Variational Inference with Inverse Autoregressive Flow", with a channel of a
            sample as the group. A mean, not a sum, so that the number holds for every image size.
        target: capacity C in nats per sample; the loss is |KL - C| over the number of input values:
            Burgess et al. 2018, "Understanding disentangling in beta-VAE", eq. 8.
        anneal: factor from 0 to 1 of the loss, or of `target` where there is one, as Burgess et al.
            let C rise.
    """

    free_bits: float | None = None
    target: float | None = None
    anneal: AnnealConfig | None = None

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, in nats per input value.

        Raises:
            TrainingError: the model has no posterior.
        """
        moments = batch.reconstruction.moments
        if moments is None:
            raise TrainingError(
                "loss 'kl': the model has no posterior (moments is None); leave the loss out"
            )
        nats = (
            kl_nats(moments)
            if self.free_bits is None
            else kl_nats_with_free_bits(moments, self.free_bits)
        )
        factor = 1.0 if self.anneal is None else anneal_factor(self.anneal, batch.step)
        nats = factor * nats if self.target is None else (nats - factor * self.target).abs()
        return nats / num_values(batch.inputs, batch.mask)


def kl_nats(moments: Moments) -> Tensor:
    """Return KL(q || N(0, I)) of each sample, summed over its latent values, (N,) float32, nats."""
    return _kl_of_values(moments).flatten(1).sum(dim=1)


def kl_nats_with_free_bits(moments: Moments, free_bits: float) -> Tensor:
    """Return `kl_nats` with every channel's mean over positions raised to at least `free_bits`
    nats.
    """
    values = _kl_of_values(moments)
    positions = math.prod(values.shape[2:])
    means = values.reshape(*values.shape[:2], positions).mean(dim=2)
    return positions * means.clamp(min=free_bits).sum(dim=1)


def _kl_of_values(moments: Moments) -> Tensor:
    """Return the nats of each latent value, in the moments' shape, float32; logvar is clamped to
    [-30, 20].

    Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B.
    """
    mean, logvar = moments.mean.float(), moments.logvar.float().clamp(*LOGVAR_RANGE)
    return 0.5 * (mean.square() + torch.exp(logvar) - 1.0 - logvar)


def anneal_factor(anneal: AnnealConfig, step: int) -> float:
    """Return the factor, from 0 to 1, after `step` optimizer steps.

    It rises along a line (Bowman et al. 2016), or along a line in each cycle: Fu et al. 2019,
    "Cyclical Annealing Schedule", eq. 6 and 7. A cycle that would begin between two steps begins,
    at 0, with the second; eq. 7 rounds the lengths of all cycles up instead, and so may have fewer.
    """
    if step >= anneal.steps:
        return 1.0
    if anneal.kind == "linear":
        return step / anneal.steps
    since_start = step * anneal.cycles % anneal.steps // anneal.cycles  # whole steps
    return min(since_start * anneal.cycles / anneal.steps / anneal.ratio, 1.0)

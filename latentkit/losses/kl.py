"""Loss `kl`: the rate of a KL autoencoder, in nats per input value.

The unit makes weights comparable: with reconstruction losses that are means over a sample's values, the weight of `kl` is the beta of the
summed objective (Higgins et al. 2017, "beta-VAE", eq. 4), and 1e-6 means what it means in Rombach et al. 2022, "High-Resolution Image
Synthesis with Latent Diffusion Models", whose code sums both terms.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentkit.contracts import LossBatch, Moments

LOGVAR_RANGE = (-30.0, 20.0)


def kl(batch: LossBatch) -> Tensor:
    """KL(q || N(0, I)) of each sample's posterior over its number of input values, (N,) float32, in nats per value.

    Raises:
        ValueError: the model has no posterior.
    """
    moments = batch.reconstruction.moments
    if moments is None:
        raise ValueError("loss 'kl': the model has no posterior (moments is None); leave the loss out")
    return kl_nats(moments) / num_values(batch.inputs, batch.mask)


def kl_nats(moments: Moments) -> Tensor:
    """KL(q || N(0, I)) of each sample summed over its latent values, (N,) float32, in nats; any number of axes.

    Kingma and Welling 2014, "Auto-Encoding Variational Bayes", appendix B; logvar is clamped to [-30, 20].
    """
    mean, logvar = moments.mean.float(), moments.logvar.float().clamp(*LOGVAR_RANGE)
    return 0.5 * (mean.square() + torch.exp(logvar) - 1.0 - logvar).flatten(1).sum(dim=1)


def num_values(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """How many of each sample's values count, (N,) float32; at least 1."""
    if mask is None:
        return torch.full((len(inputs),), float(math.prod(inputs.shape[1:])), device=inputs.device)
    return mask.float().expand_as(inputs).flatten(1).sum(dim=1).clamp(min=1)

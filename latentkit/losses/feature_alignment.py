"""Loss `feature-alignment`: latents that are arranged like the features of a vision network.

Yao et al. 2025, "Reconstruction vs. Generation: Taming Optimization Dilemma in Latent Diffusion
Models" (VA-VAE), section 3.2: the sum of the marginal distance matrix similarity loss and the
marginal cosine similarity loss. The training loop computes their adaptive weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, relu

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.features import Features

if TYPE_CHECKING:
    from latentkit.losses.options import FeatureAlignmentConfig


def open_feature_alignment(
    config: FeatureAlignmentConfig, features: Features, seed: int
) -> FeatureAlignment:
    """Build the loss that a recipe names; the seed draws the projection's weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Conv2d(config.channels, features.channels, 1, bias=False)
    return FeatureAlignment(features, projection, config.matrix_margin, config.cosine_margin)


class FeatureAlignment:
    """Sum of two hinge losses on cosine similarities: of each projected latent with the feature at
    its position, and of all pairs of positions of a sample.

    Args:
        features: the frozen network; `module` has none of its weights.
        projection: latent channels to feature channels; trained with the model.
        matrix_margin: how far the similarity of two latents may be from the similarity of their
            features at no cost.
        cosine_margin: distance, 1 - cosine, that a latent may have from its feature at no cost.
    """

    def __init__(
        self, features: Features, projection: nn.Conv2d, matrix_margin: float, cosine_margin: float
    ) -> None:
        self.module: nn.Module = projection
        self.features, self._channels = features, projection.in_channels
        self._matrix_margin, self._cosine_margin = matrix_margin, cosine_margin

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return (N,) float32, from 0 to 4 less the margins.

        Raises:
            TrainingError: the latents aren't maps, or have another number of channels.
        """
        latents = batch.reconstruction.latents
        if latents.ndim != 4 or latents.shape[1] != self._channels:
            raise TrainingError(
                f"loss 'feature-alignment': option channels is {self._channels}, but the model's"
                f" latents are {tuple(latents.shape)}; expected (N, channels, h, w)"
            )
        features = self.features(batch.inputs, (latents.shape[2], latents.shape[3]))
        with torch.autocast(latents.device.type, enabled=False):
            directions = normalize(self.module(latents.float()).flatten(2), dim=1)
            targets = normalize(features.flatten(2), dim=1)
            differences = (directions.mT @ directions - targets.mT @ targets).abs()
            matrix = relu(differences - self._matrix_margin).flatten(1).mean(dim=1)
            cosine = relu(1 - self._cosine_margin - (directions * targets).sum(dim=1)).mean(dim=1)
        return matrix + cosine

"""Metric `rfid`: the Fréchet distance between features of reconstructions and of their inputs.

M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
Equilibrium" (2017), eq. 6, in float64. The trace of (A B)^(1/2) is that of (A^(1/2) B
A^(1/2))^(1/2), which is symmetric: its eigenvalues are real, and small negative ones are rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentkit.contracts import Figure, Measured, MetricBatch, MetricSetting
from latentkit.errors import SourceError
from latentkit.metrics.feature_networks import FeatureNetwork
from latentkit.metrics.pixels import PEAK, levels

USUAL_SAMPLES = 50_000
FEW_SAMPLES = 10_000


class Rfid:
    """Fréchet distance between features of inputs and of reconstructions."""

    def __init__(self, network: FeatureNetwork) -> None:
        self._network = network

    def start(self, setting: MetricSetting) -> None:
        if setting.num_samples is not None and setting.num_samples < 2:
            raise SourceError(
                "metric 'rfid' needs at least 2 samples, and thousands to be useful; the source"
                f" has {setting.num_samples}"
            )
        self._setting = setting
        self._inputs, self._outputs = Gaussian(), Gaussian()

    def add(self, batch: MetricBatch) -> None:
        for gaussian, values in zip((self._inputs, self._outputs), batch.pair(), strict=True):
            pixels = levels(values, self._setting.input_range).float() / PEAK
            gaussian.add(self._network(pixels))

    def finish(self) -> Measured:
        count, num_features = self._inputs.count, len(self._inputs.mean)
        if count < 2:
            raise SourceError(f"metric 'rfid' needs at least 2 samples, got {count}")
        value = frechet_distance(
            self._inputs.mean,
            self._inputs.covariance(),
            self._outputs.mean,
            self._outputs.covariance(),
        )
        protocol = (
            f"{num_features} features of {self._network.name}; {count:,} inputs against their own"
            " reconstructions, both of this source; clamped, rounded to 8 bits; decoded from"
            f" {self._setting.decoded_from}"
        )
        warnings = []
        if count < FEW_SAMPLES:
            rank = (
                f", no more than the {num_features} features, so the covariances are singular"
                if count <= num_features
                else ""
            )
            advice = (
                "the value is biased; compare only values of equally many samples;"
                f" {USUAL_SAMPLES:,} is usual"
            )
            warnings.append(f"rfid of {count:,} samples{rank}: {advice}")
        return Measured({"": Figure(value, "", protocol, "lower")}, {}, {}, warnings)


class Gaussian:
    """Mean and covariance of vectors that come in batches, float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self._squares = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        """Add vectors (N, F)."""
        vectors = vectors.cpu().double()
        center, number = vectors.mean(dim=0), len(vectors)
        squares = (vectors - center).T @ (vectors - center)
        if not self.count:
            self.count, self.mean, self._squares = number, center, squares
            return
        count, gap = self.count + number, center - self.mean
        self._squares += squares + torch.outer(gap, gap) * (self.count * number / count)
        self.mean = self.mean + gap * (number / count)
        self.count = count

    def covariance(self) -> Tensor:
        """Return the unbiased covariance, (F, F)."""
        return self._squares / (self.count - 1)


def frechet_distance(
    mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor
) -> float:
    """Return the squared Fréchet distance between two Gaussians, not below 0."""
    values, vectors = torch.linalg.eigh(covariance_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ covariance_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (
        (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * cross
    )
    return max(float(distance), 0.0)

"""Scores of a linear variational autoencoder equal their closed forms (probabilistic PCA); ROC,
average precision and thresholds equal scikit-learn's, or are counted by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latentkit.contracts import MetricBatch, MetricSetting, Moments
from latentkit.contracts.encoder_description import LatentLayout
from latentkit.uses.calibration import (
    average_precision,
    combine,
    roc_auc,
    set_threshold,
    wilson_interval,
)
from latentkit.uses.decoding_scores import DecodingScores, negative_elbo
from latentkit.uses.samplers import StandardNormal

SIZE, RANK, NOISE = 12, 3, 0.4
SETTING = MetricSetting((-1.0, 1.0), LatentLayout("latent", "gaussian", "CL", RANK, 1), "mean", 1)


class Linear(nn.Module):
    """x = W z + m with orthogonal columns of W, so that the best posterior has no covariances."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        square = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.weight = torch.linalg.qr(square).Q[:, :RANK] * torch.tensor([3.0, 2.0, 0.7])
        self.center = torch.linspace(-1, 1, SIZE, dtype=torch.float64)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.squeeze(-1).double() @ self.weight.T + self.center)[..., None].float()

    def posterior(self, inputs: Tensor) -> Moments:
        """The exact posterior (Tipping and Bishop 1999, eq. 6)."""
        precision = self.weight.square().sum(0) + NOISE**2
        mean = (inputs.squeeze(-1).double() - self.center) @ self.weight / precision
        logvar = (NOISE**2 / precision).log().expand(mean.shape)
        return Moments(mean[..., None].float(), logvar[..., None].float())

    def log_probability(self, inputs: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + NOISE**2 * torch.eye(SIZE).double()
        density = torch.distributions.MultivariateNormal(self.center, covariance)
        return density.log_prob(inputs.squeeze(-1).double())


@pytest.fixture
def model() -> Linear:
    return Linear()


@pytest.fixture
def inputs(model: Linear) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    clean = model.decode(torch.randn(400, RANK, 1, generator=generator))
    return clean + NOISE * torch.randn(clean.shape, generator=generator)


def measure(model: Linear, inputs: Tensor, moments: Moments, **options: Any) -> Any:
    metric = DecodingScores(4, 0, module=model, **options)
    metric.start(SETTING)
    for start in range(0, len(inputs), 64):
        one = slice(start, start + 64)
        part = Moments(moments.mean[one], moments.logvar[one])
        batch = MetricBatch(
            range(start, start + len(inputs[one])),
            part.mean,
            part,
            inputs[one],
            model.decode(part.mean),
            decode=model.decode,
        )
        metric.add(batch)
    return metric.finish().per_sample


def test_rate_and_bound_of_a_linear_model_are_exact(model: Linear, inputs: Tensor) -> None:
    moments = model.posterior(inputs)
    found = measure(model, inputs, moments)
    bound = torch.from_numpy(negative_elbo(found["mean_square"], found["kl"], NOISE)) * SIZE
    exact = -model.log_probability(inputs)
    assert torch.allclose(bound, exact, rtol=5e-3)
    mean, variance = moments.mean.double(), moments.logvar.double().exp()
    rate = 0.5 * (mean.square() + variance - 1 - variance.log()).flatten(1).sum(1)
    assert torch.allclose(torch.from_numpy(found["kl"]) * SIZE, rate, rtol=5e-3)


def test_samples_of_a_linear_model_have_its_covariance(model: Linear) -> None:
    latents = StandardNormal((RANK, 1)).draw(400_000, torch.Generator().manual_seed(0))
    samples = model.decode(latents).squeeze(-1).double() - model.center
    found = samples.T @ samples / len(samples)
    exact = model.weight @ model.weight.T
    assert float((found - exact).norm() / exact.norm()) < 5e-3


def test_regret_finds_the_best_posterior_of_a_linear_model(model: Linear, inputs: Tensor) -> None:
    """Of the exact posterior there is nothing to regret; of another one it is the difference."""
    exact = model.posterior(inputs)
    none = measure(model, inputs, exact, scale=NOISE, regret_steps=20)["regret"]
    assert float(np.abs(none).max()) * SIZE < 0.05
    off = Moments(exact.mean + 0.2, exact.logvar)
    bounds = [
        negative_elbo(found["mean_square"], found["kl"], NOISE)
        for found in (measure(model, inputs, off), measure(model, inputs, exact))
    ]
    found = measure(model, inputs, off, scale=NOISE, regret_steps=200)["regret"]
    assert np.allclose(found, bounds[0] - bounds[1], rtol=0.02, atol=1e-3)


def test_an_item_has_the_same_score_in_any_batch(model: Linear, inputs: Tensor) -> None:
    moments = model.posterior(inputs)
    whole = measure(model, inputs, moments)
    for place in (0, 77):
        one = slice(place, place + 1)
        alone = measure(model, inputs[one], Moments(moments.mean[one], moments.logvar[one]))
        for name, values in alone.items():
            assert math.isclose(values[0], whole[name][place], rel_tol=1e-6)


def test_areas_equal_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    for ties in (1000, 4):
        scores = np.round(generator.standard_normal(200) * ties) / ties
        labels = generator.random(200) < 0.2
        assert math.isclose(roc_auc(scores, labels), metrics.roc_auc_score(labels, scores))
        expected = metrics.average_precision_score(labels, scores)
        assert math.isclose(average_precision(scores, labels), expected)


@pytest.mark.parametrize(
    ("rate", "value", "above"), [(0.05, 95.0, 5), (0.5, 50.0, 50), (0.001, 100.0, 0)]
)
def test_a_threshold_leaves_at_most_the_rate_above(rate: float, value: float, above: int) -> None:
    scores = np.append(np.arange(1.0, 101.0), np.nan)
    found = set_threshold(np.random.default_rng(0).permutation(scores), rate)
    assert (found.value, found.rate, found.num_items) == (value, above / 100, 100)
    assert found.interval[0] <= found.rate <= found.interval[1]


def test_wilson_intervals() -> None:
    """By the table of L. D. Brown, T. T. Cai and A. DasGupta's formula: 1 of 10, 0 of 20."""
    assert wilson_interval(1, 10) == pytest.approx((0.01788, 0.40415), abs=1e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.16113), abs=1e-5)


def test_the_combined_score_keeps_the_order_beyond_the_reference() -> None:
    reference = {"a": np.arange(100.0), "b": np.arange(100.0)}
    scores: dict[str, Any] = {
        "a": np.array([10.0, 98.0, 500.0, 900.0, np.nan]),
        "b": np.array([10.0, 98.0, 500.0, 900.0, 98.0]),
    }
    found: Sequence[float] = combine(scores, reference).tolist()
    assert found[:4] == sorted(found[:4])
    assert len(set(found[:4])) == 4
    assert found[4] == pytest.approx(found[1])
    assert found[0] == pytest.approx(-math.log(91 / 101))

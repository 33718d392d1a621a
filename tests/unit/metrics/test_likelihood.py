"""Rate, bound and likelihood of a linear autoencoder, against the closed form of probabilistic PCA.

M. E. Tipping and C. M. Bishop, "Probabilistic Principal Component Analysis" (1999): with
eigenvalues L and eigenvectors U of the data's covariance, W = U (L - s^2)^(1/2), the posterior of z
is N(W' (x - m) / L, s^2 / L), and x is N(m, W W' + s^2).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from latentkit.builtin.metrics import METRICS
from latentkit.contracts import (
    BuildContext,
    Entry,
    InputSpec,
    LatentLayout,
    LossBatch,
    Moments,
    Prepared,
    Reconstruction,
    Sample,
)
from latentkit.evaluation.evaluate import EvaluateSettings, ModuleCodec, NamedMetric, evaluate_model
from latentkit.losses.kl import Kl
from latentkit.losses.likelihood import GAUSSIAN, open_nll
from latentkit.losses.options import KlConfig, LikelihoodConfig
from latentkit.plugins import discover

NUM_SAMPLES, NUM_VALUES, NUM_LATENTS = 400, 12, 3
Floats = npt.NDArray[np.float64]
LAYOUT = LatentLayout("latent", "gaussian", "C", NUM_LATENTS, 1)
SPEC = InputSpec(channels=NUM_VALUES)


class Vectors:
    """A source whose samples are vectors."""

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), self.rows[index].tobytes())

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))


class VectorModality:
    metrics = ()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        yield Prepared(
            "plain", "vector", torch.frombuffer(bytearray(sample.read()), dtype=torch.float32)
        )

    def render(self, tensors: Any, path: Any) -> None:
        raise AssertionError("nothing is rendered")


class LinearVae(nn.Module):
    """x to N(A (x - m), diag(v)), and z to W z + m."""

    def __init__(self, encode: Floats, variance: Floats, decode: Floats, center: Floats) -> None:
        super().__init__()
        self.encoder, self.decoder = (
            nn.Parameter(torch.tensor(matrix, dtype=torch.float32)) for matrix in (encode, decode)
        )
        self.logvar = nn.Parameter(torch.tensor(np.log(variance), dtype=torch.float32))
        self.register_buffer("center", torch.tensor(center, dtype=torch.float32))

    def forward(self, batch: Tensor) -> Reconstruction:
        mean = (batch - self.center) @ self.encoder.T
        logvar = self.logvar.expand_as(mean)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return Reconstruction(self.decode(latents), latents, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = latents @ self.decoder.T + self.center
        return decoded


class Ppca:
    """Probabilistic PCA of drawn data, in closed form."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        mixing = rng.normal(size=(NUM_LATENTS, NUM_VALUES)) * np.array([[2.0], [1.2], [0.8]])
        rows = (
            rng.normal(size=(NUM_SAMPLES, NUM_LATENTS)) @ mixing
            + 0.3 * rng.normal(size=(NUM_SAMPLES, NUM_VALUES))
            + 0.5
        )
        self.rows = rows.astype(np.float32)
        self.center = self.rows.mean(axis=0, dtype=np.float64)
        covariance = np.cov(self.rows.T.astype(np.float64), bias=True)
        values, vectors = np.linalg.eigh(covariance)
        self.values, self.vectors = values[::-1][:NUM_LATENTS], vectors[:, ::-1][:, :NUM_LATENTS]
        self.noise = float(values[:-NUM_LATENTS].mean())
        self.weights = self.vectors * np.sqrt(self.values - self.noise)
        self.posterior_variance = self.noise / self.values

    def model(self, inflation: float = 1.0) -> LinearVae:
        """The optimum, its posterior's variance multiplied."""
        return LinearVae(
            self.weights.T / self.values[:, None],
            inflation * self.posterior_variance,
            self.weights,
            self.center,
        )

    def log_likelihood(self) -> float:
        """Mean of log p(x), nats."""
        model = self.weights @ self.weights.T + self.noise * np.eye(NUM_VALUES)
        centered = self.rows - self.center
        distance = np.einsum("ni,ij,nj->n", centered, np.linalg.inv(model), centered)
        return float(
            -0.5
            * (NUM_VALUES * math.log(2 * math.pi) + np.linalg.slogdet(model)[1] + distance).mean()
        )


PPCA = Ppca()


def evaluate(
    model: nn.Module, posterior: Any = "sample", **metrics: dict[str, Any]
) -> dict[str, float]:
    named = []
    for name, options in metrics.items():
        spec = METRICS[name.replace("_", "-")]
        named.append(
            NamedMetric(
                name,
                spec.build(discover().configure("metric", spec.name, options, "metric"), BuildContext(input=SPEC)),
                spec.needs,
                spec.name,
            )
        )
    settings = EvaluateSettings(posterior=posterior, batch_size=100)
    return evaluate_model(
        ModuleCodec(model, SPEC, LAYOUT), Vectors(PPCA.rows), VectorModality(), named, settings
    ).values()


@pytest.mark.parametrize("posterior", ["mean", "sample"])
def test_elbo_of_the_optimum_is_the_likelihood_whatever_is_decoded_otherwise(
    posterior: str,
) -> None:
    found = evaluate(PPCA.model(), posterior, elbo={"scale": math.sqrt(PPCA.noise), "draws": 100})
    assert found["elbo"] == pytest.approx(PPCA.log_likelihood(), rel=0.005)
    assert found["elbo"] == pytest.approx(-found["elbo_distortion"] - found["elbo_rate"])


def test_elbo_finds_the_best_scale_itself() -> None:
    found = evaluate(PPCA.model(), elbo={"draws": 100})
    assert found["elbo_scale"] == pytest.approx(math.sqrt(PPCA.noise), rel=0.005)
    assert found["elbo"] == pytest.approx(PPCA.log_likelihood(), rel=0.005)


def test_a_wrong_posterior_costs_the_elbo_its_divergence_and_the_importance_estimate_nothing() -> (
    None
):
    inflation, scale = 2.0, math.sqrt(PPCA.noise)
    found = evaluate(
        PPCA.model(inflation),
        elbo={"scale": scale, "draws": 200},
        iwae={"scale": scale, "draws": 2000},
    )
    gap = 0.5 * NUM_LATENTS * (inflation - 1 - math.log(inflation))
    assert found["elbo"] == pytest.approx(PPCA.log_likelihood() - gap, rel=0.005)
    assert found["iwae"] == pytest.approx(-PPCA.log_likelihood(), rel=0.005)


def test_one_importance_sample_is_the_elbo_and_more_come_nearer() -> None:
    scale = math.sqrt(PPCA.noise)
    found = [
        evaluate(PPCA.model(3.0), iwae={"scale": scale, "draws": draws})["iwae"]
        for draws in (1, 5, 100)
    ]
    gap = 0.5 * NUM_LATENTS * (3 - 1 - math.log(3))
    assert found[0] == pytest.approx(-PPCA.log_likelihood() + gap, rel=0.02)
    assert found[0] > found[1] > found[2] > -PPCA.log_likelihood() - 0.05


def test_kl_is_in_nats_per_sample_and_bits_per_input_value() -> None:
    found = evaluate(PPCA.model(), "mean", kl={})
    means = (PPCA.rows - PPCA.center) @ (PPCA.weights / PPCA.values)
    variance = PPCA.posterior_variance
    expected = 0.5 * (means**2 + variance - 1 - np.log(variance)).sum(axis=1).mean()
    assert found["kl"] == pytest.approx(expected, rel=1e-5)
    assert found["kl_bits_per_dim"] == pytest.approx(expected / NUM_VALUES / math.log(2), rel=1e-5)


def test_a_laplace_likelihood_has_its_own_density() -> None:
    model = PPCA.model(1e-9)  # hardly any noise: the distortion is that of the means
    errors = np.abs(
        PPCA.rows
        - PPCA.center
        - (PPCA.rows - PPCA.center) @ (PPCA.weights / PPCA.values) @ PPCA.weights.T
    )
    found = evaluate(model, elbo={"likelihood": "laplace"})
    assert found["elbo_scale"] == pytest.approx(errors.mean(), rel=1e-3)
    assert found["elbo_distortion"] == pytest.approx(
        NUM_VALUES * (1 + math.log(2 * errors.mean())), rel=1e-3
    )


def test_a_bernoulli_likelihood_is_the_cross_entropy_of_bits() -> None:
    class Coin(nn.Module):
        """Says 0.5 in [-1, 1], a chance of 0.75, of every bit."""

        def forward(self, batch: Tensor) -> Reconstruction:
            mean = batch.new_zeros(len(batch), NUM_LATENTS)
            return Reconstruction(self.decode(mean), mean, Moments(mean, mean))

        def decode(self, latents: Tensor) -> Tensor:
            return latents.new_full((len(latents), NUM_VALUES), 0.5)

    bits = np.where(np.arange(NUM_VALUES) < 4, 1, -1).astype(np.float32)
    spec = METRICS["iwae"]
    metric = spec.build(
        discover().configure("metric", "iwae", {"likelihood": "bernoulli", "draws": 3}, "metric"), BuildContext(input=SPEC)
    )
    codec = ModuleCodec(Coin(), SPEC, LAYOUT)
    found = evaluate_model(
        codec,
        Vectors(bits[None]),
        VectorModality(),
        [NamedMetric("iwae", metric, spec.needs)],
        EvaluateSettings(),
    )
    assert found.values()["iwae"] == pytest.approx(
        -4 * math.log(0.75) - 8 * math.log(0.25), rel=1e-5
    )


def train(beta: float) -> LinearVae:
    """A linear autoencoder trained with the weight `beta` on `kl`, from the optimum of beta 1."""
    torch.manual_seed(0)
    model = PPCA.model()
    inputs = torch.from_numpy(PPCA.rows)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    nll, kl = open_nll(GAUSSIAN, LikelihoodConfig(scale=math.sqrt(PPCA.noise))), Kl(
        **KlConfig().model_dump()
    )
    for step in range(400):
        batch = LossBatch(inputs, model(inputs), None, step, model, model.decode)
        optimizer.zero_grad()
        (nll(batch) + beta * kl(batch)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model


def test_with_the_kl_weight_the_rate_falls_and_the_distortion_rises() -> None:
    betas = (0.1, 0.5, 1.0, 4.0, 16.0)
    found = [
        evaluate(train(beta), elbo={"scale": math.sqrt(PPCA.noise), "draws": 20}) for beta in betas
    ]
    rates, distortions, bounds = (
        [values[name] for values in found] for name in ("elbo_rate", "elbo_distortion", "elbo")
    )
    assert rates == sorted(rates, reverse=True)
    assert distortions == sorted(distortions)
    assert max(bounds) == bounds[2]
    # Of the objective with weight beta, the optimum is that of noise beta s^2: the rate in closed
    # form.
    for beta, rate in zip(betas, rates, strict=True):
        expected = 0.5 * np.log(np.maximum(PPCA.values / (beta * PPCA.noise), 1)).sum()
        assert rate == pytest.approx(expected, rel=0.02, abs=0.02)

"""Negative log likelihoods against torch.distributions and scipy, with fixed, learned and optimal
scales.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from loss_batches import make_batch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Laplace, Normal

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import BuildContext, HasModule
from latentkit.losses.options import LikelihoodConfig

FAMILIES = {"laplace-nll": Laplace, "gaussian-nll": Normal}
SPECS = {spec.name: spec for spec in latentkit_losses()}


def build(name: str, **options: Any) -> Any:
    return SPECS[name].build(LikelihoodConfig(**options), BuildContext())


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.01, 0.1, 2.5])
def test_fixed_scale_gives_minus_the_mean_log_density(name: str, scale: float) -> None:
    inputs, output = noise(3, 2, 5), noise(3, 2, 5, 1)[..., 0]
    expected = -FAMILIES[name](output, scale).log_prob(inputs).flatten(1).mean(1)
    torch.testing.assert_close(build(name, scale=scale)(make_batch(inputs, output)), expected)


@pytest.mark.parametrize(
    ("name", "density"), [("laplace-nll", scipy.stats.laplace), ("gaussian-nll", scipy.stats.norm)]
)
def test_optimal_scale_is_where_the_batchs_likelihood_is_largest(name: str, density: Any) -> None:
    errors = np.random.default_rng(0).normal(size=(4, 30)) * 0.3

    def nll(log_scale: float) -> float:
        return float(-density.logpdf(errors, scale=math.exp(log_scale)).mean())

    best = scipy.optimize.minimize_scalar(
        nll, bounds=(-5, 5), method="bounded", options={"xatol": 1e-6}
    )
    values = build(name)(make_batch(torch.zeros(4, 30), torch.tensor(errors).float()))
    assert float(values.mean()) == pytest.approx(best.fun, rel=1e-5)
    each = -density.logpdf(errors, scale=math.exp(best.x)).mean(axis=1)
    np.testing.assert_allclose(values.numpy(), each, rtol=1e-4)


@pytest.mark.parametrize(("name", "power"), [("laplace-nll", 1), ("gaussian-nll", 2)])
def test_gradient_of_optimal_scale_is_that_of_the_log_of_the_error(name: str, power: int) -> None:
    """With the scale put in, what is left to make small is ln(mean |e|^p) / p: Rybkin et al.

    2021.
    """
    output = noise(4, 30).requires_grad_()
    batch = make_batch(torch.zeros(4, 30), output)
    (slope,) = torch.autograd.grad(build(name)(batch).mean(), output)
    (expected,) = torch.autograd.grad(output.abs().pow(power).mean().log() / power, output)
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_perfect_batch_has_the_lowest_scale_and_a_finite_gradient(name: str) -> None:
    output = torch.zeros(2, 3, requires_grad=True)
    values = build(name)(make_batch(torch.zeros(2, 3), output))
    torch.testing.assert_close(values, -FAMILIES[name](0.0, math.exp(-6)).log_prob(torch.zeros(2)))
    (slope,) = torch.autograd.grad(values.sum(), output)
    assert bool(slope.isfinite().all())


def test_optimal_scale_leaves_masked_values_out() -> None:
    inputs, mask = torch.zeros(2, 1, 4), torch.tensor([[[1.0, 1, 0, 0]], [[1, 1, 0, 0]]])
    output = torch.tensor([[[1.0, -3, 50, 50]], [[2.0, 2, 70, 0]]])
    expected = -Laplace(0.0, 2.0).log_prob(torch.tensor([[1.0, -3], [2, 2]])).mean(1)
    torch.testing.assert_close(build("laplace-nll")(make_batch(inputs, output, mask)), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_learned_scale_starts_where_it_is_told(name: str) -> None:
    loss = build(name, scale="learned", initial_scale=0.25)
    assert isinstance(loss, HasModule)
    expected = -FAMILIES[name](0.0, 0.25).log_prob(torch.tensor([0.5])).mean()
    assert loss(make_batch(torch.zeros(1, 1), torch.full((1, 1), 0.5))).tolist() == pytest.approx(
        [float(expected)], rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "best"), [("laplace-nll", 0.05), ("gaussian-nll", math.sqrt(0.0033))]
)
def test_learned_scale_finds_the_optimal_one(name: str, best: float) -> None:
    """Errors of 0.03, 0.03 and 0.09: mean 0.05, mean square 0.0033."""
    errors = torch.tensor([[0.03, -0.03, 0.09]])
    loss = build(name, scale="learned")
    optimizer = torch.optim.Adam(loss.module.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss(make_batch(torch.zeros(1, 3), errors)).mean().backward()
        optimizer.step()
    assert math.exp(loss.module().item()) == pytest.approx(best, rel=1e-3)


def test_learned_scale_stays_above_the_lowest_and_keeps_a_gradient_there() -> None:
    loss = build("gaussian-nll", scale="learned")
    with torch.no_grad():
        loss.module.raw.fill_(-12.0)
    assert -6 < loss.module().item() < -5.99
    loss(make_batch(torch.zeros(1, 1), torch.ones(1, 1))).sum().backward()
    assert float(loss.module.raw.grad) < 0, "descent makes the scale larger where errors are"


def test_no_scale_but_the_learned_one_has_weights() -> None:
    assert not isinstance(build("laplace-nll", scale=0.1), HasModule)
    assert not isinstance(build("laplace-nll"), HasModule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0.0}, "expected a number above 0, optimal or learned"),
        ({"scale": "best"}, "'optimal' or 'learned'"),
        ({"initial_scale": 0.2}, "initial_scale needs scale: learned; set it"),
        ({"scale": "learned", "initial_scale": 0.0001}, "greater than 0.0025"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LikelihoodConfig(**options)

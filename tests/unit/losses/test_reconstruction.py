"""Losses against numbers worked out by other means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentkit.contracts import LossBatch, Moments, Reconstruction
from latentkit.errors import TrainingError
from latentkit.losses.kl import Kl, kl_nats
from latentkit.losses.reconstruction import l1, mse


def loss_batch(
    inputs: Tensor, output: Tensor, moments: Moments | None = None, mask: Tensor | None = None
) -> LossBatch:
    reconstruction = Reconstruction(
        output=output, latents=torch.zeros(len(inputs), 1), moments=moments
    )
    return LossBatch(
        inputs=inputs,
        reconstruction=reconstruction,
        mask=mask,
        step=0,
        encode=lambda x: x,
        decode=lambda x: x,
    )


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 4, 5), (2, 1, 3, 4, 5)])
def test_l1_and_mse_are_means_over_each_samples_values(shape: tuple[int, ...]) -> None:
    inputs, output = torch.randn(shape), torch.randn(shape)
    errors = [
        [abs(float(a - b)) for a, b in zip(x.flatten(), y.flatten(), strict=True)]
        for x, y in zip(inputs, output, strict=True)
    ]
    batch = loss_batch(inputs, output)
    torch.testing.assert_close(l1(batch), torch.tensor([sum(row) / len(row) for row in errors]))
    torch.testing.assert_close(
        mse(batch), torch.tensor([sum(e * e for e in row) / len(row) for row in errors])
    )


def test_masked_values_dont_count() -> None:
    inputs = torch.zeros(2, 2, 4)
    output = torch.tensor(
        [[[1.0, 2, 3, 100], [1, 2, 3, 100]], [[5.0, 100, 100, 100], [7, 100, 100, 100]]]
    )
    mask = torch.tensor([[[1.0, 1, 1, 0]], [[1, 0, 0, 0]]])
    batch = loss_batch(inputs, output, Moments(torch.ones(2, 3), torch.zeros(2, 3)), mask)
    assert l1(batch).tolist() == [2.0, 6.0]
    assert mse(batch).tolist() == pytest.approx([28 / 6, 37.0])
    assert Kl()(batch).tolist() == pytest.approx(
        [1.5 / 6, 1.5 / 2]
    ), "KL is shared out among the values that count"


def test_a_sample_with_nothing_to_count_has_no_loss() -> None:
    batch = loss_batch(torch.zeros(1, 1, 2), torch.ones(1, 1, 2), mask=torch.zeros(1, 1, 2))
    assert l1(batch).tolist() == [0.0]


@pytest.mark.parametrize(
    "axes", [(5,), (4, 5), (4, 5, 6), (4, 2, 5, 6)], ids=["vector", "audio", "image", "video"]
)
def test_kl_is_that_of_torch_distributions_for_any_number_of_axes(axes: tuple[int, ...]) -> None:
    mean, logvar = torch.randn(3, *axes), torch.randn(3, *axes)
    expected = (
        kl_divergence(
            Normal(mean, (logvar / 2).exp()), Normal(torch.tensor(0.0), torch.tensor(1.0))
        )
        .flatten(1)
        .sum(1)
    )
    torch.testing.assert_close(kl_nats(Moments(mean, logvar)), expected)
    inputs = torch.zeros(3, 3, 16, 16)
    torch.testing.assert_close(
        Kl()(loss_batch(inputs, inputs, Moments(mean, logvar))), expected / 768
    )


def test_kl_of_half_precision_moments_is_summed_in_float32() -> None:
    moments = Moments(torch.full((1, 4, 64, 64), 3.0).half(), torch.zeros(1, 4, 64, 64).half())
    assert kl_nats(moments).tolist() == [4.5 * 16384], "beyond float16's largest number"


def test_an_extreme_logvar_gives_a_finite_kl() -> None:
    low, high = (
        float(kl_nats(Moments(torch.zeros(1, 1), torch.full((1, 1), value))))
        for value in (-1e4, 1e4)
    )
    assert low == pytest.approx(0.5 * (math.exp(-30) - 1 + 30))
    assert high == pytest.approx(0.5 * (math.exp(20) - 1 - 20))


def test_kl_of_a_model_without_posterior_says_so() -> None:
    with pytest.raises(TrainingError, match="no posterior"):
        Kl()(loss_batch(torch.zeros(1, 1), torch.zeros(1, 1)))


def test_losses_are_float32_whatever_the_reconstruction_is() -> None:
    batch = loss_batch(torch.zeros(1, 2), torch.ones(1, 2).bfloat16())
    assert l1(batch).dtype == mse(batch).dtype == torch.float32

"""Negative log likelihood of bits against their probabilities, written out."""

from __future__ import annotations

import math

import pytest
import torch
from loss_batches import make_batch

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import BuildContext, InputSpec, Loss
from latentkit.testing import LossContract

SPEC = next(spec for spec in latentkit_losses() if spec.name == "bernoulli-nll")


def build(low: float, high: float) -> Loss:
    loss: Loss = SPEC.build(SPEC.config(), BuildContext(input=InputSpec(1, (low, high))))
    return loss


class TestBernoulliNll(LossContract):
    spec = SPEC
    zero_when_perfect = False  # the contract's pictures lie between the two values of a bit


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_bits_cost_minus_their_mean_log_probability(low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (3, 1, 4, 5), generator=generator).float()
    chances = torch.rand(bits.shape, generator=generator)
    expected = -torch.where(bits > 0, chances, 1 - chances).log().flatten(1).mean(1)
    found = build(low, high)(make_batch(low + (high - low) * bits, low + (high - low) * chances))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_a_coin_costs_ln_2() -> None:
    values = build(0, 1)(make_batch(torch.tensor([[0.0, 1, 1]]), torch.full((1, 3), 0.5)))
    assert float(values) == pytest.approx(math.log(2), rel=1e-6)


def test_a_value_between_costs_the_shares_of_both_bits() -> None:
    values = build(0, 1)(make_batch(torch.tensor([[0.25]]), torch.tensor([[0.9]])))
    assert float(values) == pytest.approx(-0.25 * math.log(0.9) - 0.75 * math.log(0.1), rel=1e-6)


@pytest.mark.parametrize("bit", [0.0, 1.0])
def test_a_sure_miss_costs_16_nats_and_a_sure_hit_nothing(bit: float) -> None:
    values = build(0, 1)(make_batch(torch.full((2, 1), bit), torch.tensor([[1 - bit], [bit]])))
    assert values.tolist() == pytest.approx(
        [-math.log(1e-7), 0.0], rel=0.02, abs=1e-6
    )  # float32 has few numbers next to 1


def test_gradient_of_a_logit_is_its_chance_less_the_bit() -> None:
    bits, logits = torch.tensor([[0.0, 1, 1, 0]]), torch.tensor(
        [[-3.0, 0, 2, 4]], requires_grad=True
    )
    (slope,) = torch.autograd.grad(build(0, 1)(make_batch(bits, logits.sigmoid())).sum(), logits)
    torch.testing.assert_close(slope, (logits.sigmoid() - bits).detach() / 4)


def test_masked_values_are_left_out() -> None:
    bits, chances = torch.tensor([[[1.0, 0, 1]]]), torch.tensor([[[0.5, 0.25, 0.001]]])
    values = build(0, 1)(make_batch(bits, chances, torch.tensor([[[1.0, 1, 0]]])))
    assert float(values) == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-6)

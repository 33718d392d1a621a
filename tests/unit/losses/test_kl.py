"""The options of `kl`: free bits, targets, and schedules inside the loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_batches import make_batch
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import BuildContext, LossBatch, Moments
from latentkit.losses.kl import anneal_factor
from latentkit.losses.options import AnnealConfig, KlConfig

(SPEC,) = (spec for spec in latentkit_losses() if spec.name == "kl")
NUM_VALUES = 48


def batch_of(mean: Tensor, logvar: Tensor, step: int = 0) -> LossBatch:
    inputs = torch.zeros(len(mean), 3, 4, 4)
    return make_batch(inputs, latents=mean, moments=Moments(mean, logvar), step=step)


def build(**options: Any) -> Any:
    return SPEC.build(KlConfig(**options), BuildContext())


def nats_of(mean: Tensor, logvar: Tensor) -> Tensor:
    return kl_divergence(
        Normal(mean, (logvar / 2).exp()), Normal(torch.tensor(0.0), torch.tensor(1.0))
    )


def test_free_bits_raise_the_mean_of_a_channel_and_no_single_value() -> None:
    """Channel means of 1.25, 0.02 and 0.5 nats (mean^2 / 2), two positions each, with 0.5 nats
    free.
    """
    mean = torch.tensor([[[[2.0, 1.0]], [[0.2, 0.2]], [[1.0, 1.0]]]])
    value = build(free_bits=0.5)(batch_of(mean, torch.zeros_like(mean)))
    assert value.tolist() == pytest.approx([2 * (1.25 + 0.5 + 0.5) / NUM_VALUES])


def test_a_channel_within_its_free_bits_has_no_gradient() -> None:
    mean = torch.tensor([[[[2.0, 1.0]], [[0.2, 0.2]]]], requires_grad=True)
    (slope,) = torch.autograd.grad(
        build(free_bits=0.5)(batch_of(mean, torch.zeros(1, 2, 1, 2))).sum(), mean
    )
    torch.testing.assert_close(slope[0, 0], mean[0, 0].detach() / NUM_VALUES)
    assert not slope[0, 1].any()


def test_free_bits_of_a_vector_hold_for_each_of_its_values() -> None:
    mean = torch.tensor([[2.0, 0.1]])
    assert build(free_bits=0.3)(batch_of(mean, torch.zeros(1, 2))).tolist() == pytest.approx(
        [2.3 / NUM_VALUES]
    )


def test_a_tiny_number_of_free_bits_changes_nothing() -> None:
    mean, logvar = torch.randn(3, 4, 2, 5), torch.randn(3, 4, 2, 5)
    expected = nats_of(mean, logvar).flatten(1).sum(1) / NUM_VALUES
    torch.testing.assert_close(build(free_bits=1e-9)(batch_of(mean, logvar)), expected)


def test_target_is_the_distance_of_each_samples_rate_in_nats() -> None:
    mean, logvar = torch.tensor([[4.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 2)  # 8 nats and 1
    assert build(target=3.0)(batch_of(mean, logvar)).tolist() == pytest.approx(
        [5 / NUM_VALUES, 2 / NUM_VALUES]
    )


def test_a_rate_below_its_target_is_pushed_up_and_one_above_it_down() -> None:
    mean = torch.tensor([[4.0, 0.0], [1.0, 1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(
        build(target=3.0)(batch_of(mean, torch.zeros(2, 2))).sum(), mean
    )
    torch.testing.assert_close(slope, torch.tensor([[4.0, 0.0], [-1.0, -1.0]]) / NUM_VALUES)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_a_line_raises_the_loss_or_its_target(step: int, share: float) -> None:
    anneal = AnnealConfig(steps=10)
    mean, logvar = torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2)
    assert build(anneal=anneal)(batch_of(mean, logvar, step)).tolist() == pytest.approx(
        [8 * share / NUM_VALUES]
    )
    assert build(anneal=anneal, target=6.0)(
        batch_of(mean, logvar, step)
    ).tolist() == pytest.approx([(8 - 6 * share) / NUM_VALUES])


def test_cycles_are_those_of_fu_et_al() -> None:
    """40 steps, 4 cycles, half of each rising: 0, 0.2 ...

    0.8, then 1 for five steps, four times; then 1 for good.
    """
    anneal = AnnealConfig(kind="cyclic", steps=40)
    cycle = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert [anneal_factor(anneal, step) for step in range(45)] == pytest.approx(
        cycle * 4 + [1.0] * 5
    )


def test_cycles_of_unequal_length_all_begin_at_0_and_rise_alike() -> None:
    """10 steps, 4 cycles of 2.5: they begin at 0, 2.5, 5 and 7.5, so with steps 0, 3, 5 and 8; a
    step is 0.4 of a cycle.
    """
    anneal = AnnealConfig(kind="cyclic", steps=10, ratio=1.0)
    expected = [0.0, 0.4, 0.8, 0.0, 0.4, 0.0, 0.4, 0.8, 0.0, 0.4, 1.0, 1.0]
    assert [anneal_factor(anneal, step) for step in range(12)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "cycles", "starts"),
    [
        (100, 3, [0, 34, 67]),  # 0, 33.3 and 66.7
        (8, 4, [0, 2, 4, 6]),
        (11, 5, [0, 3, 5, 7, 9]),  # 0, 2.2, 4.4, 6.6 and 8.8
        (30, 1, [0]),
    ],
)
def test_there_are_as_many_cycles_as_asked_for(steps: int, cycles: int, starts: list[int]) -> None:
    anneal = AnnealConfig(kind="cyclic", steps=steps, cycles=cycles)
    factors = [anneal_factor(anneal, step) for step in range(steps)]
    assert [step for step, factor in enumerate(factors) if factor == 0] == starts
    assert all(factors[start + 1] == pytest.approx(min(2 * cycles / steps, 1)) for start in starts)


@pytest.mark.parametrize("steps", [3, 4, 7])
def test_cycles_too_short_to_rise_are_refused(steps: int) -> None:
    with pytest.raises(
        ValidationError,
        match=f"steps: {steps} is too few for 4 cycles.* give at least 8 steps, or fewer cycles",
    ):
        AnnealConfig(kind="cyclic", steps=steps)


def test_one_cycle_that_rises_all_the_time_is_a_line() -> None:
    cyclic, linear = AnnealConfig(kind="cyclic", steps=7, cycles=1, ratio=1.0), AnnealConfig(
        steps=7
    )
    assert [anneal_factor(cyclic, step) for step in range(9)] == pytest.approx(
        [anneal_factor(linear, step) for step in range(9)]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free_bits": 0.5, "target": 3.0}, "give free_bits or target, not both"),
        ({"free_bits": 0.0}, "greater than 0"),
        (
            {"anneal": {"steps": 10, "cycles": 2}},
            "cycles and ratio need kind: cyclic; set it, or leave them out",
        ),
        ({"anneal": {"kind": "cyclic"}}, "Field required"),
    ],
)
def test_options_that_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        KlConfig(**options)

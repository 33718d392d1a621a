"""Equivariance: what is decoded from changed latents is compared with the changed picture."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loss_batches import make_batch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import interpolate

from latentkit.builtin.losses import latentkit_losses
from latentkit.contracts import BuildContext, LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.equivariance import Equivariance, change
from latentkit.losses.options import EquivarianceConfig

(SPEC,) = (spec for spec in latentkit_losses() if spec.name == "equivariance")


def build(seed: int = 0, **options: Any) -> Equivariance:
    loss = SPEC.build(EquivarianceConfig(**options), BuildContext(seed=seed))
    assert isinstance(loss, Equivariance)
    return loss


def decode(latents: Tensor) -> Tensor:
    """A model that repeats each latent over a patch of 4 x 4."""
    return interpolate(latents, scale_factor=4.0)


def batch_of(
    inputs: Tensor, latents: Tensor, step: int = 0, mask: Tensor | None = None
) -> LossBatch:
    return make_batch(inputs, mask=mask, latents=latents, step=step, decode=decode)


def test_shrinking_by_half_takes_means_of_blocks() -> None:
    values = torch.randn(2, 3, 4, 8)
    expected = values.numpy().reshape(2, 3, 2, 2, 4, 2).mean((3, 5))
    np.testing.assert_allclose(change(values, (2, 4), 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("turns", range(4))
def test_turning_is_numpys(turns: int) -> None:
    values = torch.randn(2, 3, 4, 6)
    np.testing.assert_array_equal(
        change(values, (4, 6), turns).numpy(), np.rot90(values.numpy(), turns, (2, 3))
    )


@pytest.mark.parametrize("shape", [(8, 8), (8, 12)])
def test_a_model_that_is_equivariant_costs_nothing(shape: tuple[int, int]) -> None:
    """Pictures of flat patches that shrink by half, and a decoder that fills patches."""
    latents = torch.randn(2, 3, *shape)
    latents = interpolate(latents[..., ::2, ::2], scale_factor=2.0)
    batches = [batch_of(decode(latents), latents, step) for step in range(8)]
    loss = build(p=1.0, scales=(0.5, 0.5))
    assert torch.stack([loss(batch) for batch in batches]).abs().max().item() == pytest.approx(
        0, abs=1e-6
    )


def test_loss_is_the_distance_from_the_changed_picture() -> None:
    inputs, latents = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 4, 6)
    loss = build(p=1.0, scales=(0.5, 0.5))
    step = next(step for step in range(99) if loss.draw(step) == (0.5, 1))
    small = latents.numpy().reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    output = np.rot90(small.repeat(4, 2).repeat(4, 3), 1, (2, 3))
    wanted = np.rot90(inputs.numpy().reshape(2, 3, 8, 2, 12, 2).mean((3, 5)), 1, (2, 3))
    expected = np.abs(output - wanted).mean((1, 2, 3))
    np.testing.assert_allclose(loss(batch_of(inputs, latents, step)).numpy(), expected, rtol=1e-4)


def test_masked_values_do_not_count() -> None:
    inputs, latents, mask = (
        torch.randn(1, 3, 16, 16),
        torch.randn(1, 3, 4, 4),
        torch.ones(1, 1, 16, 16),
    )
    mask[..., 8:] = 0
    loss = build(p=1.0, scales=(0.5, 0.5), rotate=False)
    value = loss(batch_of(inputs, latents, mask=mask))
    torch.testing.assert_close(value, loss(batch_of(inputs[..., :8], latents[..., :2])))


def test_gradient_reaches_encoder_and_decoder() -> None:
    latents, gain = torch.randn(2, 3, 4, 4, requires_grad=True), torch.tensor(
        1.0, requires_grad=True
    )
    batch = batch_of(torch.randn(2, 3, 16, 16), latents)
    values = build(p=1.0)(LossBatch(**{**vars(batch), "decode": lambda z: gain * decode(z)}))
    slopes = torch.autograd.grad(values.sum(), [latents, gain])
    assert all(bool(slope.any()) for slope in slopes)


# ---------------------------------------------------------------- draws


def test_a_share_p_of_the_steps_is_drawn_and_all_scales_and_turns_are() -> None:
    draws = [build(p=0.25).draw(step) for step in range(4000)]
    chosen = [draw for draw in draws if draw is not None]
    assert len(chosen) / len(draws) == pytest.approx(0.25, abs=0.02)
    assert {scale for scale, _ in chosen} == {
        part / 32 for part in range(8, 32)
    }, "those of the paper's code"
    turns = np.bincount([turn for _, turn in chosen], minlength=4) / len(chosen)
    np.testing.assert_allclose(turns, 0.25, atol=0.05)


def test_a_step_that_is_left_out_costs_nothing_and_does_not_decode() -> None:
    def refuse(latents: Tensor) -> Tensor:
        raise AssertionError("decoded")

    loss = build(p=0.5)
    step = next(step for step in range(99) if loss.draw(step) is None)
    batch = batch_of(torch.randn(2, 3, 16, 16), torch.randn(2, 3, 4, 4), step)
    assert loss(LossBatch(**{**vars(batch), "decode": refuse})).tolist() == [0.0, 0.0]


def test_draws_depend_on_seed_and_step_alone() -> None:
    state = torch.get_rng_state()
    draws = [build(seed=7).draw(step) for step in range(50)]
    assert torch.equal(torch.get_rng_state(), state), "the run's own random numbers are untouched"
    torch.manual_seed(99)
    assert [build(seed=7).draw(step) for step in range(50)] == draws
    assert [build(seed=8).draw(step) for step in range(50)] != draws


def test_without_rotation_nothing_is_turned() -> None:
    loss = build(p=1.0, rotate=False)
    assert {draw[1] for step in range(50) if (draw := loss.draw(step))} == {0}


@pytest.mark.parametrize("scales", [(0.0, 0.5), (0.5, 0.25), (0.5, 1.5)])
def test_scales_that_do_not_shrink_are_refused(scales: tuple[float, float]) -> None:
    with pytest.raises(
        ValidationError, match="must be two numbers above 0 and at most 1, the smaller one first"
    ):
        EquivarianceConfig(scales=scales)


def test_latents_that_are_no_maps_are_refused() -> None:
    with pytest.raises(
        TrainingError, match=r"expected latents of images, \(N, C, h, w\), got \(2, 8\)"
    ):
        build()(batch_of(torch.zeros(2, 3, 8, 8), torch.zeros(2, 8)))

"""Every check for losses fails for a loss that is broken in that one way, and none for good ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentkit.contracts import BuildContext, Config, LossBatch, LossRole, LossSpec
from latentkit.testing import LossContract, PluginContract, check_names, find_failures

BUILD_NUMBERS = itertools.count(1)


class NoConfig(Config):
    """No options."""


class ErrorContract(LossContract):
    def __init__(
        self, build: Callable[[BuildContext], Any], role: LossRole = "reconstruction"
    ) -> None:
        self.spec = LossSpec(
            "error",
            "how far a reconstruction is off",
            NoConfig,
            lambda config, context: build(context),
            role=role,
        )

    def entry_point(self) -> None:
        """Declared here only."""


# ---------------------------------------------------------------- good ones


def errors_of(batch: LossBatch) -> Tensor:
    """Squared errors, (N, values), zero where masked."""
    errors = (batch.reconstruction.output.float() - batch.inputs).square()
    return (errors if batch.mask is None else errors * batch.mask).flatten(1)


def count(batch: LossBatch) -> Tensor:
    """Values of each sample that aren't masked, (N,)."""
    return (
        torch.ones_like(batch.inputs)
        .mul(1.0 if batch.mask is None else batch.mask)
        .flatten(1)
        .sum(1)
    )


def error(batch: LossBatch) -> Tensor:
    return errors_of(batch).sum(1) / count(batch)


def energy(batch: LossBatch) -> Tensor:
    """Of the moments: a loss of role "latent"."""
    moments = batch.reconstruction.moments
    assert moments is not None
    return (moments.mean.square() + moments.logvar.exp()).flatten(1).sum(1) / batch.inputs[
        0
    ].numel()


class Critic:
    """A loss of role "adversarial": a linear discriminator of pixels."""

    def __init__(self, context: BuildContext) -> None:
        self.discriminator = nn.Conv2d(3, 1, 1)
        nn.init.constant_(self.discriminator.weight, 0.1)
        nn.init.zeros_(self.discriminator.bias)  # type: ignore[arg-type]

    def score(self, batch: Tensor) -> Tensor:
        scores: Tensor = self.discriminator(batch)
        return scores.float().flatten(1).mean(1)

    def __call__(self, batch: LossBatch) -> Tensor:
        return -self.score(batch.reconstruction.output)

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        return self.score(batch.reconstruction.output.detach()) - self.score(batch.inputs)


# ---------------------------------------------------------------- broken in one way each


def with_statistics_of_the_batch(batch: LossBatch) -> Tensor:
    return error(batch) + error(batch).mean()


def by_place(batch: LossBatch) -> Tensor:
    return error(batch) * torch.arange(1, len(batch.inputs) + 1)


def nan_when_perfect(batch: LossBatch) -> Tensor:
    return error(batch).square() / error(batch)


def in_half_precision(batch: LossBatch) -> Tensor:
    """Where autocast says so: it makes products of matrices bfloat16."""
    errors = errors_of(batch) / count(batch)[:, None]
    return (errors @ torch.ones(errors.shape[1], 1))[:, 0]


def in_place(batch: LossBatch) -> Tensor:
    batch.reconstruction.latents.zero_()
    return error(batch)


def without_mask(batch: LossBatch) -> Tensor:
    return (batch.reconstruction.output - batch.inputs).square().flatten(1).mean(1)


def with_nan_gradient(batch: LossBatch) -> Tensor:
    return error(batch) + (0 * batch.reconstruction.output).sqrt().flatten(1).sum(1)


BROKEN: dict[str, tuple[str, Callable[[LossBatch], Tensor]]] = {
    "one axis too many": ("test_loss_is_one_float32_a_sample", lambda batch: error(batch)[:, None]),
    "double precision": ("test_loss_is_one_float32_a_sample", lambda batch: error(batch).double()),
    "nan when perfect": ("test_loss_is_finite", nan_when_perfect),
    "a tenth when perfect": (
        "test_perfect_reconstruction_costs_nothing",
        lambda batch: error(batch) + 0.1,
    ),
    "sum of values": ("test_loss_is_per_input_value", lambda batch: errors_of(batch).sum(1)),
    "its place in the batch": ("test_permuting_samples_permutes_the_loss", by_place),
    "statistics of the batch": (
        "test_a_sample_changes_its_own_loss_alone",
        with_statistics_of_the_batch,
    ),
    "nothing for one sample": (
        "test_a_batch_of_one_is_enough",
        lambda batch: error(batch) if len(batch.inputs) > 1 else error(batch) * math.nan,
    ),
    "no gradient": (
        "test_gradient_reaches_what_the_loss_is_about",
        lambda batch: error(batch).detach(),
    ),
    "a gradient for one sample": (
        "test_gradient_reaches_what_the_loss_is_about",
        lambda batch: torch.where(
            error(batch) < error(batch).median(), error(batch), error(batch).detach()
        ),
    ),
    "nan as gradient": ("test_gradient_reaches_what_the_loss_is_about", with_nan_gradient),
    "half precision": ("test_loss_is_float32_under_autocast", in_half_precision),
    "changes its batch": ("test_loss_leaves_its_batch_alone", in_place),
    "without the mask": ("test_masked_values_do_not_count", without_mask),
    "masked values counted": (
        "test_masked_values_do_not_count",
        lambda batch: errors_of(batch).mean(1),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_loss_broken_in_one_way_fails_the_check_for_it(name: str, tmp_path: Path) -> None:
    check, loss = BROKEN[name]
    assert set(find_failures(ErrorContract(lambda context: loss), tmp_path)) == {check}


def scaled_by(number: int) -> Callable[[LossBatch], Tensor]:
    """A loss that is another one for each number."""
    return lambda batch: error(batch) * number


def latent_sum(batch: LossBatch) -> Tensor:
    return energy(batch) * batch.inputs[0].numel()


class ShortSighted(Critic):
    """Judges all samples as one."""

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        return super().discriminator_loss(batch).mean()


class TrainsBoth(Critic):
    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        return self.score(batch.reconstruction.output) - self.score(batch.inputs)


class TrainsNone(Critic):
    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        return super().discriminator_loss(batch).detach()


class Scaled:
    """A loss with a scale of its own, which is trained."""

    def __init__(self, context: BuildContext) -> None:
        self.module = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(0.5))})

    def __call__(self, batch: LossBatch) -> Tensor:
        return error(batch) * self.module["scale"]


class WithFrozenPart(Scaled):
    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self.module["frozen"] = nn.Parameter(torch.tensor(1.0), requires_grad=False)


class WithIdlePart(Scaled):
    def __init__(self, context: BuildContext) -> None:
        super().__init__(context)
        self.module["idle"] = nn.Parameter(torch.tensor(1.0))


class Remembers(Critic):
    """Its discriminator is trained more and more, by a number that no checkpoint has."""

    num_calls = 0

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        self.num_calls += 1
        return self.num_calls * super().discriminator_loss(batch)


CRITIC_CHECK = "test_discriminator_loss_trains_the_discriminator_alone"
ROLE_CHECK = "test_role_is_adversarial_with_a_discriminator_only"
BROKEN_BUILDS: dict[str, tuple[str, Callable[[BuildContext], Any], LossRole]] = {
    "number of the build": (
        "test_two_builds_give_equal_losses",
        lambda context: scaled_by(next(BUILD_NUMBERS)),
        "reconstruction",
    ),
    "sum over latent values": (
        "test_loss_is_per_input_value",
        lambda context: latent_sum,
        "latent",
    ),
    "of no moments": (
        "test_gradient_reaches_what_the_loss_is_about",
        lambda context: error,
        "latent",
    ),
    "adversarial without discriminator": (ROLE_CHECK, lambda context: error, "adversarial"),
    "one value for all samples": (CRITIC_CHECK, ShortSighted, "adversarial"),
    "trains the model": (CRITIC_CHECK, TrainsBoth, "adversarial"),
    "trains nothing": (CRITIC_CHECK, TrainsNone, "adversarial"),
    "a frozen part": ("test_all_of_its_own_parameters_learn", WithFrozenPart, "reconstruction"),
    "an idle part": ("test_all_of_its_own_parameters_learn", WithIdlePart, "reconstruction"),
    "remembers": ("test_all_that_it_remembers_is_saved", Remembers, "adversarial"),
}


@pytest.mark.parametrize("name", BROKEN_BUILDS)
def test_a_loss_of_any_role_broken_in_one_way_fails_the_check_for_it(
    name: str, tmp_path: Path
) -> None:
    check, build, role = BROKEN_BUILDS[name]
    assert set(find_failures(ErrorContract(build, role), tmp_path)) == {check}


def test_a_discriminator_under_another_role_fails_the_check_of_roles(tmp_path: Path) -> None:
    class CriticAsLatent(ErrorContract):
        per_value = True

        def subject(self, batch: LossBatch) -> list[Tensor]:
            return [batch.reconstruction.output]

    assert set(find_failures(CriticAsLatent(Critic, "latent"), tmp_path)) == {ROLE_CHECK}


GOOD: dict[str, tuple[Callable[[BuildContext], Any], LossRole]] = {
    "reconstruction": (lambda context: error, "reconstruction"),
    "latent": (lambda context: energy, "latent"),
    "adversarial": (Critic, "adversarial"),
    "with a parameter": (Scaled, "reconstruction"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_loss_passes_every_check(name: str, tmp_path: Path) -> None:
    assert find_failures(ErrorContract(*GOOD[name]), tmp_path) == {}


def test_what_a_loss_does_not_claim_is_not_asked_of_it(tmp_path: Path) -> None:
    class SeesSeams(ErrorContract):
        per_value = False
        zero_when_perfect = False
        honours_mask = False
        independent = False

    def loss(batch: LossBatch) -> Tensor:
        return without_mask(batch) * batch.inputs.shape[-1] + 0.1 + error(batch).mean()

    assert find_failures(SeesSeams(lambda context: loss), tmp_path) == {}


def test_pictures_are_as_large_as_a_loss_needs_them(tmp_path: Path) -> None:
    class Large(ErrorContract):
        side = 64

    batch = Large(lambda context: error).make_batch()
    assert batch.inputs.shape == (4, 3, 64, 64)
    assert batch.reconstruction.latents.shape == (4, 3, 8, 8)


def test_a_loss_that_lacks_a_member_breaks_its_protocol(tmp_path: Path) -> None:
    assert "test_build_gives_what_the_hook_promises" in find_failures(
        ErrorContract(lambda context: object()), tmp_path
    )


def test_every_check_for_losses_is_proved() -> None:
    proved = {check for check, *_ in [*BROKEN.values(), *BROKEN_BUILDS.values()]}
    assert proved | {*check_names(PluginContract)} == set(check_names(LossContract))

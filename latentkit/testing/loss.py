"""Checks for losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from latentkit.contracts import (
    Adversarial,
    HasModule,
    Loss,
    LossBatch,
    LossSpec,
    Moments,
    NamedSpec,
    Reconstruction,
)
from latentkit.testing.plugin import PluginContract

NUM_ROWS = 4
SIDE = 16
DOWNSCALE = 8


class LossContract(PluginContract):
    """Checks that every `Loss` must pass.

    Set `spec`; override `make_batch` for a loss that isn't for images.
    """

    spec: LossSpec
    spec_type: ClassVar[type[NamedSpec]] = LossSpec
    protocols: ClassVar[tuple[type, ...]] = (Loss,)

    tolerance: float = 1e-4
    """Largest relative difference between values that are equal but for rounding."""

    side: int = SIDE
    """Height and width of the images in `make_batch`, a multiple of 8 pixels; more for a loss
    that needs larger ones.
    """

    # ------------------------------------------------------------ what a plugin author overrides

    @property
    def zero_when_perfect(self) -> bool:
        """Whether a reconstruction equal to its input costs nothing."""
        return self.spec.role == "reconstruction"

    @property
    def per_value(self) -> bool:
        """Whether four copies of an image side by side cost what one does; False for a loss that
        sees the seams.
        """
        return self.spec.role != "adversarial"

    @property
    def honours_mask(self) -> bool:
        """Whether values whose mask is 0 don't count."""
        return self.spec.role == "reconstruction"

    @property
    def independent(self) -> bool:
        """Whether a sample's loss is its own; False where the loss takes statistics of the batch,
        such as its mean error.
        """
        return True

    def make_loss(self, tmp_path: Path) -> Loss:
        """Return the loss under test."""
        loss: Loss = self.build(tmp_path)
        return loss

    def make_batch(self) -> LossBatch:
        """Return four different rows, always the same: images in [-1, 1], a poor reconstruction,
        and moments. All values are finite, and there is no mask.
        """
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator) * 2 - 1

        inputs = noise(NUM_ROWS, 3, self.side, self.side)
        mean = encode(inputs).mean
        moments = Moments(mean + noise(*mean.shape), noise(*mean.shape))
        found = Reconstruction(0.5 * inputs + 0.5 * noise(*inputs.shape), moments.mean, moments)
        return LossBatch(inputs, found, mask=None, step=1, encode=encode, decode=decode)

    # ------------------------------------------------------------ values

    def test_loss_is_one_float32_a_sample(self, tmp_path: Path) -> None:
        """A batch of N gives (N,) float32: weighting, reducing and logging are the training loop's.
        """
        batch = self.make_batch()
        values = self.make_loss(tmp_path)(batch)
        got, expected = tuple(values.shape), (len(batch.inputs),)
        assert got == expected, (
            f"shape {got}, expected {expected}: reduce over all axes but the first, as in"
            " errors.flatten(1).mean(1)"
        )
        assert values.dtype == torch.float32, f"the loss is {values.dtype}: compute it in float32"

    def test_loss_is_finite(self, tmp_path: Path) -> None:
        """No value is nan or infinite, for a poor reconstruction or a perfect one."""
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        values = torch.cat([loss(batch), loss(perfect(batch))])
        assert bool(
            values.isfinite().all()
        ), f"{values.tolist()}: keep logarithms, roots and divisions away from zero"

    def test_perfect_reconstruction_costs_nothing(self, tmp_path: Path) -> None:
        """A reconstruction equal to its input has a loss of zero (`zero_when_perfect`)."""
        values = self.make_loss(tmp_path)(perfect(self.make_batch()))
        nothing = bool((without_nan(values).abs() <= self.tolerance).all())
        assert (
            nothing or not self.zero_when_perfect
        ), f"{values.tolist()} for equal images; expected zeros, or zero_when_perfect = False"

    def test_loss_is_per_input_value(self, tmp_path: Path) -> None:
        """Four copies of an image side by side have the loss of one image (`per_value`): weights
        mean the same at every size.
        """
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        same = not self.per_value or self.are_close(loss(change(batch, tile)), loss(batch))
        assert same, (
            "the loss depends on the number of values: take the mean; KL is its sum over the number"
            " of *input* values"
        )

    def test_two_builds_give_equal_losses(self, tmp_path: Path) -> None:
        """Two losses of one config give the same values: random weights are drawn from
        context.seed.
        """
        first, second = self.build_twice(tmp_path)
        batch = self.make_batch()
        assert self.are_close(
            first(batch), second(batch)
        ), "two builds of one config differ: draw from context.seed alone"

    # ------------------------------------------------------------ one sample, one value

    def test_permuting_samples_permutes_the_loss(self, tmp_path: Path) -> None:
        """Reordering the samples of a batch reorders their values in the same way."""
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        order = torch.arange(len(batch.inputs)).roll(1)
        same = self.are_close(loss(change(batch, lambda rows: rows[order])), loss(batch)[order])
        assert same, "a sample's loss depends on its place in the batch: treat all rows alike"

    def test_a_sample_changes_its_own_loss_alone(self, tmp_path: Path) -> None:
        """Changing one sample leaves the values of the others as they are (`independent`): no
        statistics over the batch.
        """
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        first = (torch.arange(len(batch.inputs)) == 0).float()
        other = change(
            batch, lambda rows: rows * (1 - 0.5 * first.reshape(-1, *[1] * (rows.ndim - 1)))
        )
        same = not self.independent or self.are_close(loss(other)[1:], loss(batch)[1:])
        assert (
            same
        ), "one sample changed, and so did the losses of others: reduce over all axes but the first"

    def test_a_batch_of_one_is_enough(self, tmp_path: Path) -> None:
        """A batch of one sample has a finite loss: memory often leaves room for no more."""
        alone = self.make_loss(tmp_path)(change(self.make_batch(), lambda rows: rows[:1]))
        assert bool(alone.isfinite().all()), (
            f"{alone.tolist()} for a batch of one: take no standard deviation over the"
            " batch, and no batch normalization"
        )

    # ------------------------------------------------------------ training

    def test_gradient_reaches_what_the_loss_is_about(self, tmp_path: Path) -> None:
        """A finite gradient reaches every sample's reconstruction, or its moments if the role is
        "latent".
        """
        batch = self.make_batch()
        rows = [tensor.requires_grad_() for tensor in self.subject(batch)]
        gradients = gradients_of(self.make_loss(tmp_path)(batch), rows)
        reached = bool(
            torch.cat([gradient.flatten(1) for gradient in gradients], 1).abs().amax(1).gt(0).all()
        )
        assert reached, (
            "no gradient for some sample: use no detach(), no_grad() or item() between"
            " reconstruction and loss"
        )
        is_finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
        assert is_finite, "the gradient is not finite"

    def test_loss_is_float32_under_autocast(self, tmp_path: Path) -> None:
        """The loss stays float32 under bfloat16 autocast: half precision can't tell two good
        reconstructions apart.
        """
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        with torch.autocast("cpu", torch.bfloat16):
            values = loss(batch)
        is_wide = torch.finfo(values.dtype).bits >= 32
        assert is_wide, (
            f"under autocast the loss is {values.dtype}: compute it with autocast off, or from"
            " .float() tensors"
        )

    def test_loss_leaves_its_batch_alone(self, tmp_path: Path) -> None:
        """Inputs, reconstruction and moments are the same after the loss as before: other losses
        see them too.
        """
        batch, untouched = self.make_batch(), self.make_batch()
        self.make_loss(tmp_path)(batch)
        same = all(
            torch.equal(one, other)
            for one, other in zip(tensors_of(batch), tensors_of(untouched), strict=True)
        )
        assert same, "the loss changed its batch: no operations in place"

    def test_masked_values_do_not_count(self, tmp_path: Path) -> None:
        """With the right half masked, the loss is that of the left half alone (`honours_mask`):
        padding isn't counted.
        """
        if not self.honours_mask:
            return
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        half = batch.inputs.shape[-1] // 2
        mask = torch.ones_like(batch.inputs[:, :1])
        mask[..., half:] = 0
        output = batch.reconstruction.output[..., :half]
        left = replace(
            batch,
            inputs=batch.inputs[..., :half],
            reconstruction=replace(batch.reconstruction, output=output),
        )
        same = self.are_close(loss(replace(batch, mask=mask)), loss(left))
        assert same, (
            "masked values count: multiply errors by batch.mask, and divide by its sum over all"
            " channels"
        )

    # ------------------------------------------------------------ losses with a state

    def test_all_of_its_own_parameters_learn(self, tmp_path: Path) -> None:
        """A gradient of the loss reaches every parameter of `module`: they are in the model's
        optimizer and in every checkpoint.
        """
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        if not isinstance(loss, HasModule):
            return
        named = dict(loss.module.named_parameters())
        frozen = [name for name, parameter in named.items() if not parameter.requires_grad]
        gradients = gradients_of(loss(batch), list(named.values()))
        untrained = frozen or [
            name for name, gradient in zip(named, gradients, strict=True) if not gradient.any()
        ]
        assert (
            not untrained
        ), f"no gradient reaches {', '.join(untrained)} of module: keep a frozen network out of it"

    def test_all_that_it_remembers_is_saved(self, tmp_path: Path) -> None:
        """A fresh copy of a loss that loads the saved tensors of a used one gives the same values
        as the used one from then on: a resumed run is exact.
        """
        used, batch = self.make_loss(tmp_path), self.make_batch()
        fresh = copy.deepcopy(used)
        for _ in range(3):
            all_values(used, batch)
        for old, new in zip(modules_of(used), modules_of(fresh), strict=True):
            new.load_state_dict(old.state_dict())
        same = self.are_close(all_values(fresh, batch), all_values(used, batch))
        assert same, (
            "the loss has state that no checkpoint saves: keep moving averages in buffers"
            " (register_buffer) of module or discriminator"
        )

    # ------------------------------------------------------------ adversarial losses

    def test_role_is_adversarial_with_a_discriminator_only(self, tmp_path: Path) -> None:
        """A loss of role "adversarial" has a discriminator and its loss, and no other role has."""
        has_discriminator = isinstance(self.make_loss(tmp_path), Adversarial)
        fits = has_discriminator == (self.spec.role == "adversarial")
        assert fits, (
            f"role {self.spec.role!r}, but has members of Adversarial: {has_discriminator}; set"
            " role in LossSpec"
        )

    def test_discriminator_loss_trains_the_discriminator_alone(self, tmp_path: Path) -> None:
        """`discriminator_loss` gives (N,) float32, whose gradient reaches the discriminator and not
        the reconstruction.
        """
        loss, batch = self.make_loss(tmp_path), self.make_batch()
        if not isinstance(loss, Adversarial):
            return
        output = batch.reconstruction.output.requires_grad_()
        values = loss.discriminator_loss(batch)
        fits = values.shape == batch.inputs.shape[:1] and values.dtype == torch.float32
        assert fits, (
            f"discriminator_loss gave {values.dtype} of shape {tuple(values.shape)}: give (N,)"
            " float32"
        )
        [gradient, *weights] = gradients_of(values, [output, *loss.discriminator.parameters()])
        assert any(
            bool(weight.any()) for weight in weights
        ), "no gradient reached the discriminator"
        assert not bool(
            gradient.any()
        ), "a gradient reached the reconstruction: detach() the output in discriminator_loss"

    # ------------------------------------------------------------ for the checks

    def are_close(self, actual: Tensor, expected: Tensor) -> bool:
        """Return whether losses are equal within `tolerance`; nan equals nan."""
        fits = actual.shape == expected.shape
        return fits and torch.allclose(
            actual.double(),
            expected.double(),
            rtol=self.tolerance,
            atol=self.tolerance / 100,
            equal_nan=True,
        )

    def subject(self, batch: LossBatch) -> list[Tensor]:
        """Return the tensors of a batch that must receive a gradient from the loss."""
        moments = batch.reconstruction.moments
        if self.spec.role == "latent" and moments is not None:
            return [moments.mean, moments.logvar]
        return [batch.reconstruction.output]


def encode(images: Tensor) -> Moments:
    """Moments of a model that averages patches: (N, 3, H, W) to (N, 3, H / 8, W / 8) each."""
    mean = avg_pool2d(images, DOWNSCALE)
    return Moments(mean, torch.zeros_like(mean))


def decode(latents: Tensor) -> Tensor:
    """Images of a model that repeats each latent over its patch: (N, 3, h, w) to (N, 3, 8 h, 8
    w).
    """
    return interpolate(latents, scale_factor=float(DOWNSCALE))


def change(batch: LossBatch, function: Callable[[Tensor], Tensor]) -> LossBatch:
    """Apply the function to every tensor of a batch."""
    found = batch.reconstruction
    moments = found.moments and Moments(
        function(found.moments.mean), function(found.moments.logvar)
    )
    changed = replace(
        found, output=function(found.output), latents=function(found.latents), moments=moments
    )
    return replace(batch, inputs=function(batch.inputs), reconstruction=changed)


def tile(rows: Tensor) -> Tensor:
    """Rows twice as large along every axis but batch and channels, filled with copies."""
    return rows.repeat(1, 1, *[2] * (rows.ndim - 2))


def perfect(batch: LossBatch) -> LossBatch:
    """A batch whose reconstruction equals its input."""
    return replace(batch, reconstruction=replace(batch.reconstruction, output=batch.inputs.clone()))


def modules_of(loss: object) -> list[nn.Module]:
    """The modules of a loss that a checkpoint saves."""
    return ([loss.module] if isinstance(loss, HasModule) else []) + (
        [loss.discriminator] if isinstance(loss, Adversarial) else []
    )


def all_values(loss: Loss, batch: LossBatch) -> Tensor:
    """The values of the loss, (N,), then those of any discriminator loss, together (2 N,)."""
    values = [loss(batch)] + (
        [loss.discriminator_loss(batch)] if isinstance(loss, Adversarial) else []
    )
    return torch.cat([value.detach().reshape(-1) for value in values])


def gradients_of(values: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradient of the sum of losses by each tensor; zeros for a tensor that has none."""
    if not values.requires_grad:
        return [torch.zeros_like(tensor) for tensor in tensors]
    return list(torch.autograd.grad(values.sum(), tensors, materialize_grads=True))


def tensors_of(batch: LossBatch) -> list[Tensor]:
    """Return all tensors of a batch."""
    found = batch.reconstruction
    return [
        batch.inputs,
        found.output,
        found.latents,
        *([found.moments.mean, found.moments.logvar] if found.moments else []),
    ]


def without_nan(values: Tensor) -> Tensor:
    """The values with zero for nan: another check finds nan."""
    return values.nan_to_num(nan=0.0)

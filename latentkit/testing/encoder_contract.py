"""Checks for encoders."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import (
    Normalization,
)
from latentkit.encoding.batch_tensors import check_layout, encode_batch
from latentkit.errors import EncoderError
from latentkit.testing.batches import (
    are_same,
    axes_of,
    copy_of,
    expected_shape,
    forbidden_size,
    mask_along,
    other_padding,
    row_of,
)
from latentkit.testing.encoder_training import TrainingChecks
from latentkit.testing.latents import (
    are_equal,
    assert_close,
    counted_of,
    deciding_parts,
    encode_without_mask,
    raised_by,
    random_state,
)

NAMES = {"gaussian": {"mean", "logvar"}, "deterministic": {"latent"}, "quantised": {"indices"}}
LOGVAR_RANGE = (-30.0, 20.0)

class EncoderContract(TrainingChecks):
    """Checks that every `Encoder` must pass, and those of `Decodes` and `Trainable` if it has their
    members.

    Set `spec`, and override `make_config` with small random weights: no check measures how good the
    latents are.
    """

    # ------------------------------------------------------------ what it declares

    def test_declarations_fit_together(self, tmp_path: Path) -> None:
        """Modality, range, axes and layout are complete: one downscale per axis but C, C first, and
        a ragged axis that exists.
        """
        encoder = self.make_encoder(tmp_path)
        layout, (low, high) = encoder.layout, encoder.input.range
        assert (
            encoder.modality
        ), "modality is empty: give the recipe name of a modality, such as 'image'"
        assert low < high, f"input.range is ({low}, {high}): the lowest value comes first"
        for name, axes in (("input", encoder.input.axes), ("layout", layout.axes)):
            assert len(set(axes)) == len(
                axes
            ), f"{name}.axes is {axes!r}: a letter occurs twice"
        factors = layout.downscale if isinstance(layout.downscale, tuple) else (layout.downscale,)
        assert (
            min(factors, default=1) >= 1
        ), f"layout.downscale is {layout.downscale}: input size over latent size, at least 1"
        try:
            check_layout(encoder)
        except EncoderError as error:
            raise AssertionError(str(error)) from error

    def test_normalization_can_be_undone(self, tmp_path: Path) -> None:
        """Normalized latents are finite, undoing the normalization gives the raw latents again, and
        shift and scale fit the layout.
        """
        encoder = self.make_encoder(tmp_path)
        raw = next(iter(self.encode(encoder).values())).float().cpu()
        if encoder.layout.kind == "quantised":
            return
        raw, axes = torch.where(raw.isfinite(), raw, 0.0), encoder.layout.axes
        latents = encoder.normalization.apply(raw, axes)
        assert bool(
            latents.isfinite().all()
        ), "normalized latents are not finite: look for a scale of 0 or infinity"
        back = encoder.normalization.invert(latents, axes)
        assert_close(
            back,
            raw,
            self.tolerance,
            "undoing it doesn't give the raw latents: look at the shapes of shift and scale",
        )

    # ------------------------------------------------------------ encode

    def test_latents_have_the_names_of_their_kind(self, tmp_path: Path) -> None:
        """`encode` returns "mean" and "logvar" for a gaussian layout, "latent" for a deterministic
        one, "indices" for a quantized one; and maybe "mask".
        """
        encoder = self.make_encoder(tmp_path)
        got, wanted = set(self.encode_all(encoder)) - {"mask"}, NAMES[encoder.layout.kind]
        assert (
            got == wanted
        ), f"encode gave {sorted(got)}; a {encoder.layout.kind} layout needs {sorted(wanted)}"

    def test_latents_have_the_shape_of_the_layout(self, tmp_path: Path) -> None:
        """Latents have the batch's rows, and the layout's axes and channels. Their sizes along axes
        of the input are the input's divided by the downscale.
        """
        encoder = self.make_encoder(tmp_path)
        for sizes in self.sizes(encoder):
            for name, tensor in encode_without_mask(
                encoder, self.make_batch(encoder, sizes, 2)
            ).items():
                got = tuple(tensor.shape)
                expected = expected_shape(encoder, 2, sizes, got)
                assert got == expected, (
                    f"{name!r} has shape {got} for an input of {sizes}; by the layout it is"
                    f" {expected}"
                )

    def test_a_mask_fits_the_latents(self, tmp_path: Path) -> None:
        """The latents' mask (`encode`'s own, or the input's reduced by `downscale`) has the
        latents' sizes, and counts a position in each row.
        """
        encoder = self.make_encoder(tmp_path)
        for sizes in (
            self.sizes(encoder) if encoder.input.takes_mask or encoder.layout.ragged_axis else ()
        ):
            batch = self.make_batch(encoder, sizes, 2)
            if isinstance(batch, Tensor):
                batch = {"values": batch, "mask": mask_along(sizes[0], 2)}
            try:
                mask = encode_batch(encoder, batch)["mask"]
            except EncoderError as error:
                raise AssertionError(str(error)) from error
            assert bool(
                mask.flatten(1).any(1).all()
            ), "a row with counted positions has latents of which none counts"

    def test_what_a_mask_leaves_out_changes_nothing(self, tmp_path: Path) -> None:
        """An encoder that takes a mask returns the same counted latents, within `tolerance`, when
        the padding has other values.
        """
        encoder = self.make_encoder(tmp_path)
        batch = self.make_batch(encoder, self.sizes(encoder)[0], 2)
        if not encoder.input.takes_mask or isinstance(batch, Tensor):
            return
        first, other = encode_batch(encoder, batch), encode_batch(encoder, other_padding(batch))
        mask = first.pop("mask").cpu()
        assert torch.equal(
            mask, other["mask"].cpu()
        ), "the latents' mask depends on the padding's values"
        for name, tensor in first.items():
            counted = [
                counted_of(latents, mask, encoder.layout) for latents in (tensor, other[name])
            ]
            assert_close(
                counted[0],
                counted[1],
                self.tolerance,
                f"{name!r} depends on the padding: give the mask to the network",
            )

    def test_latents_are_floats_and_indices_whole_numbers(self, tmp_path: Path) -> None:
        """Latents have a float dtype; indices one of whole numbers."""
        encoder = self.make_encoder(tmp_path)
        for name, tensor in self.encode(encoder).items():
            fits = tensor.is_floating_point() != (encoder.layout.kind == "quantised")
            assert fits, f"{name!r} is {tensor.dtype}, in a {encoder.layout.kind} layout"

    def test_latents_are_finite(self, tmp_path: Path) -> None:
        """No latent of a good input is nan or infinite."""
        wrong = [
            name
            for name, tensor in self.encode(self.make_encoder(tmp_path)).items()
            if not bool(tensor.isfinite().all())
        ]
        assert not wrong, f"nan or infinity in {wrong}: compute in a wider dtype"

    def test_logvar_is_within_its_limits(self, tmp_path: Path) -> None:
        """The log-variance lies in [-30, 20], so that its exponential neither overflows nor becomes
        0 in float32.
        """
        logvar = self.encode(self.make_encoder(tmp_path)).get("logvar", torch.zeros(1))
        finite = logvar[logvar.isfinite()]  # test_latents_are_finite reports the others
        inside = bool(((finite >= LOGVAR_RANGE[0]) & (finite <= LOGVAR_RANGE[1])).all())
        assert (
            inside
        ), f"logvar from {float(finite.min())} to {float(finite.max())}: clamp it to [-30, 20]"

    def test_latents_need_no_gradient(self, tmp_path: Path) -> None:
        """Latents carry no graph, which would keep the activations of every batch in memory."""
        wrong = [
            name
            for name, tensor in self.encode(self.make_encoder(tmp_path)).items()
            if tensor.requires_grad
        ]
        assert not wrong, f"{wrong} require gradients: encode inside torch.inference_mode()"

    def test_encoding_again_gives_equal_latents(self, tmp_path: Path) -> None:
        """Encoding a batch twice gives the same bits: draws are made when latents are read, not by
        `encode`.
        """
        encoder = self.make_encoder(tmp_path)
        same = are_equal(self.encode(encoder), self.encode(encoder))
        assert (
            same
        ), "a second encode differs: give the posterior, not a draw, and put modules into eval()"

    def test_two_builds_give_equal_latents(self, tmp_path: Path) -> None:
        """Two encoders of one config give the same bits: random weights are drawn from
        context.seed.
        """
        first, second = self.build_twice(tmp_path)
        assert are_equal(
            self.encode(first), self.encode(second)
        ), "two builds of one config differ: draw from context.seed alone"

    def test_a_batch_gives_what_its_rows_give(self, tmp_path: Path) -> None:
        """A batch of two gives what its rows give one by one, within `tolerance`: a latent doesn't
        depend on its neighbors.
        """
        encoder = self.make_encoder(tmp_path)
        batch = self.make_batch(encoder, self.sizes(encoder)[0], 2)
        together = encode_without_mask(encoder, copy_of(batch))
        alone = [encode_without_mask(encoder, row_of(batch, number)) for number in range(2)]
        for name, tensor in together.items():
            rows = torch.cat([latents[name] for latents in alone])
            assert_close(
                tensor,
                rows,
                self.tolerance,
                f"{name!r} of a batch is not that of its rows: no statistics over the batch",
            )

    def test_latents_are_unscaled(self, tmp_path: Path) -> None:
        """`encode` returns raw latents, which don't depend on `normalization`: that is applied when
        they are read.
        """
        encoder, other = self.make_encoder(tmp_path), self.make_renormalized(tmp_path)
        expected = self.encode(encoder)
        elsewhere = property(lambda encoder: Normalization(shift=3.0, scale=0.25))
        with mock.patch.object(type(encoder), "normalization", elsewhere, create=True):
            found = [self.encode(encoder)]
        for latents in found + ([] if other is None else [self.encode(other)]):
            for name, tensor in expected.items():
                assert_close(
                    latents[name],
                    tensor,
                    self.tolerance,
                    f"{name!r} changes with the normalization: give it as the network does",
                )

    def test_encode_leaves_its_input_alone(self, tmp_path: Path) -> None:
        """The batch is the same after `encode` as before."""
        encoder = self.make_encoder(tmp_path)
        batch = self.make_batch(encoder, self.sizes(encoder)[0], 2)
        before = copy_of(batch)
        encode_without_mask(encoder, batch)
        assert are_same(
            batch, before
        ), "encode changed its input: no operations in place on the batch"

    def test_encode_leaves_random_numbers_alone(self, tmp_path: Path) -> None:
        """`encode` doesn't change the state of the global generators of torch, NumPy and Python."""
        encoder = self.make_encoder(tmp_path)
        # The states are moved, so that a seed set by encode would be noticed.
        torch.rand(1), np.random.rand(), random.random()
        before = random_state()
        self.encode(encoder)
        assert random_state() == before, (
            "encode drew from or seeded a global generator: use a torch.Generator, or"
            " torch.random.fork_rng()"
        )

    def test_sizes_it_does_not_take_raise_value_error(self, tmp_path: Path) -> None:
        """An input of a size that `input.sizes` forbids raises `ValueError`, instead of being
        padded or cut.
        """
        encoder = self.make_encoder(tmp_path)
        good = self.sizes(encoder)[0]
        for place, axis in enumerate(axes_of(encoder)):
            wrong = forbidden_size(encoder.input, axis, good[place])
            if wrong is not None:
                batch = self.make_batch(encoder, (*good[:place], wrong, *good[place + 1 :]), 1)
                raised = raised_by(encoder, batch)
                assert isinstance(
                    raised, ValueError
                ), f"{axis} = {wrong} gave {raised!r}: raise ValueError and say what is allowed"

    # ------------------------------------------------------------ fingerprint

    def test_fingerprint_is_texts_by_name(self, tmp_path: Path) -> None:
        """`fingerprint` gives at least one part, names and values texts."""
        parts = self.make_encoder(tmp_path).fingerprint()
        fits = bool(parts) and all(
            isinstance(part, str) and part for pair in parts.items() for part in pair
        )
        assert fits, f"fingerprint gave {parts!r}: name to hash or setting, as texts"

    def test_fingerprint_is_stable(self, tmp_path: Path) -> None:
        """Two builds have the same fingerprint, before and after encoding: with another fingerprint
        all latents would be encoded again.
        """
        first, second = self.build_twice(tmp_path)
        before = first.fingerprint()
        self.encode(first)
        assert (
            before == first.fingerprint()
        ), "the fingerprint changed by encoding: hash weights as they are computed with"
        assert (
            before == second.fingerprint()
        ), "two builds of one config have two fingerprints: leave out times, paths and addresses"

    def test_fingerprint_changes_with_a_single_bit_of_the_weights(self, tmp_path: Path) -> None:
        """Changing one bit of one weight that `encode` uses changes the fingerprint, so that stale
        latents are never used as current ones.
        """
        encoder = self.make_encoder(tmp_path)
        self.encode(encoder)
        before = deciding_parts(encoder)
        changed = self.perturb(encoder)
        same = changed is not None and deciding_parts(changed) == before
        assert not same, (
            "the fingerprint doesn't depend on a weight: hash all that encode uses (or override"
            " perturb() to change one of those)"
        )

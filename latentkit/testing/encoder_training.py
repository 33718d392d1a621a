"""Checks for encoders that decode, and for encoders that `task: train` can train."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from latentkit.contracts import Decodes, Moments, Normalization, Reconstruction, Trainable
from latentkit.runtime.device import memory_format
from latentkit.testing.batches import values_of
from latentkit.testing.encoder_setup import EncoderSetup
from latentkit.testing.latents import assert_close

STRENGTH = 0.2
"""Size of the noise that simulates training, relative to each weight."""

ROUNDING = 0.1
"""Largest difference between the trained and the reloaded encoder, relative to the change by
training: weights may be saved in half precision.
"""


class TrainingChecks(EncoderSetup):
    """Checks of decoding and training. They pass for an encoder that has no such members."""

    # ------------------------------------------------------------ decode

    def test_decoded_batch_is_like_the_input(self, tmp_path: Path) -> None:
        """`decode` of raw latents gives finite floats of the input's shape, about in its range: at
        most its width outside.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Decodes):
            return
        batch = self.make_batch(encoder, self.sizes(encoder)[0], 2)
        decoded, given = encoder.decode(self.latents_of(encoder, batch)).float(), values_of(batch)
        low, high = encoder.input.range
        assert (
            decoded.shape == given.shape
        ), f"decode gave {tuple(decoded.shape)} for an input of {tuple(given.shape)}"
        assert bool(decoded.isfinite().all()), "decode gave nan or infinity"
        inside = float(decoded.min()) >= 2 * low - high and float(decoded.max()) <= 2 * high - low
        assert inside, (
            f"decoded values from {float(decoded.min())} to {float(decoded.max())}; the input's"
            f" range is {low} to {high}"
        )

    def test_decode_leaves_its_latents_alone(self, tmp_path: Path) -> None:
        """The latents are the same after `decode` as before."""
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Decodes):
            return
        latents = self.latents_of(encoder, self.make_batch(encoder, self.sizes(encoder)[0], 2))
        before = latents.clone()
        encoder.decode(latents)
        assert torch.equal(
            latents, before
        ), "decode changed the latents it was given: no operations in place on them"

    # ------------------------------------------------------------ training

    def test_forward_trains_the_last_layer(self, tmp_path: Path) -> None:
        """A trainable module's forward gives a `Reconstruction` of the input's shape, whose
        gradient reaches `last_layer()`.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable):
            return
        batch = values_of(self.make_batch(encoder, self.sizes(encoder)[0], 2)).to(
            encoder.last_layer().device
        )
        found = encoder.module(batch)
        assert isinstance(
            found, Reconstruction
        ), f"forward gave a {type(found).__name__}: give latentkit.contracts.Reconstruction"
        assert (
            found.output.shape == batch.shape
        ), f"output has shape {tuple(found.output.shape)}, the input {tuple(batch.shape)}"
        has_moments = found.moments is not None
        assert has_moments == (
            encoder.layout.kind == "gaussian"
        ), "forward gives moments if, and only if, the layout is gaussian"
        [slope] = torch.autograd.grad(
            found.output.float().square().mean(), [encoder.last_layer()], allow_unused=True
        )
        reached = slope is not None and bool(slope.any())
        assert (
            reached
        ), "no gradient reached last_layer(): give a weight that the module's forward uses"

    def test_decode_takes_raw_latents(self, tmp_path: Path) -> None:
        """`decode` gives the same batch whatever `normalization` says: its latents are raw."""
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Decodes):
            return
        latents = self.latents_of(encoder, self.make_batch(encoder, self.sizes(encoder)[0], 2))
        expected = encoder.decode(latents.clone())
        elsewhere = property(lambda encoder: Normalization(shift=3.0, scale=0.25))
        with mock.patch.object(type(encoder), "normalization", elsewhere, create=True):
            found = encoder.decode(latents.clone())
        advice = "decode changes with the normalization: it takes latents as encode gives them"
        assert_close(found, expected, self.tolerance, advice)

    def test_trained_weights_are_float32(self, tmp_path: Path) -> None:
        """All weights of the module that is trained are float32; `precision` is what it computes
        in.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable) or not self.trains:
            return
        dtypes = {str(weight.dtype) for weight in encoder.module.parameters()}
        assert dtypes == {"torch.float32"}, (
            f"module has weights of {', '.join(sorted(dtypes)) or 'no dtype: it has none'};"
            " training needs float32. Set trains = False for a config that is for encoding alone"
        )

    def test_forward_gives_what_encode_and_decode_give(self, tmp_path: Path) -> None:
        """Forward's moments (or latents) are those of `encode`, its output is what `decode` makes
        of its latents, and each extra loss is one value a sample.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable) or not self.trains:
            return
        batch = values_of(self.make_batch(encoder, self.sizes(encoder)[0], 2))
        encoded, found = self.encode(encoder), _run_forward(encoder, batch)
        if encoder.layout.kind != "quantised":
            moments = found.moments
            pairs = [("latent", found.latents)] if moments is None else _named(moments)
            for name, tensor in pairs:
                advice = f"forward's {name} differs from encode's: training changes weights that"
                assert_close(tensor, encoded[name], self.tolerance, f"{advice} encode doesn't use")
        if isinstance(encoder, Decodes) and encoder.layout.kind != "quantised":
            low, high = encoder.input.range
            decoded, output = encoder.decode(found.latents.clone()), found.output
            advice = "forward's output isn't what decode makes of its latents"
            assert_close(
                decoded.float().clamp(low, high),
                output.float().clamp(low, high),
                self.tolerance,
                advice,
            )
        wrong = [name for name, loss in found.extra_losses.items() if loss.shape != (len(batch),)]
        assert not wrong, f"extra_losses {wrong}: give one value a sample, shape (N,)"

    def test_a_gradient_goes_back_to_what_was_encoded(self, tmp_path: Path) -> None:
        """If moments (or latents) have a gradient, the output's gradient reaches them, so that the
        encoder learns from the reconstruction.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable) or not self.trains:
            return
        module = encoder.module.requires_grad_(True)
        batch = values_of(self.make_batch(encoder, self.sizes(encoder)[0], 2))
        found: Reconstruction = module(batch.to(next(module.parameters()).device))
        encoded = found.latents if found.moments is None else found.moments.mean
        if not encoded.requires_grad:  # an encoder that stays as it is
            return
        [slope] = torch.autograd.grad(
            found.output.float().square().mean(), [encoded], allow_unused=True
        )
        reached = slope is not None and bool(slope.any())
        assert reached, (
            "the output's gradient doesn't reach the moments (or latents) that forward gives: no"
            " detach() between encoder and decoder, and give the tensors that were decoded"
        )

    def test_the_module_decodes_with_a_gradient(self, tmp_path: Path) -> None:
        """`module.decode`, if it exists, decodes raw latents to a batch like forward's output, with
        a
        gradient: evaluations during training and some losses call it.
        """
        encoder = self.make_encoder(tmp_path)
        decode = getattr(getattr(encoder, "module", None), "decode", None)
        if not isinstance(encoder, Trainable) or decode is None or not self.trains:
            return
        batch = values_of(self.make_batch(encoder, self.sizes(encoder)[0], 2))
        found = _run_forward(encoder, batch)
        with torch.enable_grad():
            latents = found.latents.detach().clone().requires_grad_(True)
            decoded = decode(latents)
        assert isinstance(
            decoded, Tensor
        ), f"module.decode gave a {type(decoded).__name__}; expected a tensor like the input"
        advice = "module.decode makes another batch of forward's latents than forward does"
        assert_close(decoded.detach(), found.output, self.tolerance, advice)
        assert (
            decoded.requires_grad
        ), "module.decode gives no gradient: no torch.no_grad() there, and none in what it calls"

    def test_save_writes_what_is_read_again(self, tmp_path: Path) -> None:
        """`save` fills an empty folder with the weights as they are after training, from which the
        same plugin (see `make_trained_config`) makes the trained encoder.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable) or not self.trains:
            return
        batch = values_of(self.make_batch(encoder, self.sizes(encoder)[0], 2))
        before = _run_forward(encoder, batch)
        _stand_in_for_training(encoder.module)
        after = _run_forward(encoder, batch)
        read = self.save_and_read(tmp_path, encoder)
        if read is None or not isinstance(read, Trainable):
            return
        _lay_out(read.module)  # draws depend on it
        found = _run_forward(read, batch)
        for name in ("encoded", "output"):
            first, trained, again = (_parts_of(one)[name] for one in (before, after, found))
            moved = float((trained - first).abs().max())
            lost = float((again - trained).abs().max())
            assert lost <= max(ROUNDING * moved, self.tolerance), (
                f"{name} of what save wrote differs by {lost:.2g} from the trained module's, which"
                f" training moved by {moved:.2g}: save the weights of module"
            )

    def test_statistics_reach_the_normalization(self, tmp_path: Path) -> None:
        """After `set_statistics`, if it exists, with mean 0 and standard deviation 2, the saved
        encoder has a `normalization` that halves raw latents.
        """
        encoder = self.make_encoder(tmp_path)
        if not isinstance(encoder, Trainable) or not self.trains:
            return
        set_statistics = getattr(encoder, "set_statistics", None)
        if (
            not self.stores_statistics
            or set_statistics is None
            or encoder.layout.kind == "quantised"
        ):
            return
        per_channel = torch.zeros(encoder.layout.channels, dtype=torch.float64)
        set_statistics(per_channel, per_channel + 2)
        read = self.save_and_read(tmp_path, encoder)
        if read is None:
            return
        raw = self.latents_of(encoder, self.make_batch(encoder, self.sizes(encoder)[0], 2))
        latents = read.normalization.apply(raw.float().cpu(), encoder.layout.axes)
        expected = Normalization(scale=0.5, fold=read.normalization.fold)
        assert_close(
            latents,
            expected.apply(raw.float().cpu(), encoder.layout.axes),
            self.tolerance,
            "the statistics that training measured are lost: let save write what set_statistics was"
            " given, and normalization apply it, (z - mean) / std",
        )

    # ------------------------------------------------------------ for the checks

    def save_and_read(self, tmp_path: Path, encoder: Trainable) -> Any:
        """Save the encoder and return the one opened from that folder; None if no config opens it.
        """
        folder = tmp_path / "saved"
        folder.mkdir()
        encoder.save(folder)
        config = self.make_trained_config(tmp_path, folder)
        if config is None:
            return None
        assert any(folder.iterdir()), "save wrote nothing into the folder that it was given"
        return self.spec.build(config, self.make_context(tmp_path))


def _run_forward(encoder: Trainable, batch: Tensor) -> Reconstruction:
    """Return the module's output in eval mode, as in evaluations."""
    module = encoder.module.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)  # equal draws in each call
        found = module(batch.to(next(module.parameters()).device))
    assert isinstance(
        found, Reconstruction
    ), f"forward gave a {type(found).__name__}: give latentkit.contracts.Reconstruction"
    return found


def _named(moments: Moments) -> list[tuple[str, Tensor]]:
    return [("mean", moments.mean), ("logvar", moments.logvar)]


def _parts_of(found: Reconstruction) -> dict[str, Tensor]:
    encoded = found.latents if found.moments is None else found.moments.mean
    return {"encoded": encoded.float().cpu(), "output": found.output.float().cpu()}


def _stand_in_for_training(module: nn.Module) -> None:
    """Change every weight, by numbers that are the same in each call, and lay it out in memory as
    training does.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            noise = torch.randn(weight.shape, generator=generator).to(weight)
            weight.add_(STRENGTH * weight.abs().mean() * noise)
    _lay_out(module)


def _lay_out(module: nn.Module) -> None:
    """Lay weights out in memory as training does."""
    for weight in module.parameters():
        layout = memory_format(weight.device, weight.ndim)
        weight.data = weight.data.to(memory_format=layout)

"""Every check for encoders fails for an encoder that is broken in that one way, and none for good
ones.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentkit.contracts import (
    BuildContext,
    Config,
    Encoder,
    EncoderSpec,
    InputSpec,
    LatentLayout,
    Moments,
    Normalization,
    Reconstruction,
    SizeRule,
)
from latentkit.encoders.hashing import hash_tensors
from latentkit.testing import EncoderContract, PluginContract, check_names, find_failures

EIGHTS = SizeRule(multiple=8)
BUILD_NUMBERS = itertools.count()


class PatchesConfig(Config):
    """What is read again."""

    model: str | None = Field(None, description="folder that save wrote")


class Network(nn.Module):
    """A linear map of 8 x 8 patches to mean and logvar, and one back."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.down = nn.Conv2d(3, 8, 8, stride=8)
            self.up = nn.ConvTranspose2d(4, 3, 8, stride=8)

    def forward(self, batch: Tensor) -> Reconstruction:
        mean, logvar = self.down(batch).chunk(2, dim=1)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return Reconstruction(self.up(latents), latents, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.up(latents)
        return decoded


class Patches:
    """A good encoder; satisfies `Encoder`, `Decodes` and `Trainable`."""

    modality = "image"
    input = InputSpec(channels=3, sizes={"H": EIGHTS, "W": EIGHTS})
    layout = LatentLayout(name="latent", kind="gaussian", axes="CHW", channels=4, downscale=8)
    mean, std = [0.1, 0.2, 0.3, 0.4], [2.0] * 4

    def __init__(self, context: BuildContext, model: str | None = None) -> None:
        self.module = Network(context.seed)
        self.untrained = Network(context.seed)
        if model is not None:
            tensors = load_file(f"{model}/tensors.safetensors")
            self.mean, self.std = tensors.pop("mean").tolist(), tensors.pop("std").tolist()
            self.module.load_state_dict(tensors)
        self.number = next(BUILD_NUMBERS)
        self.generator = torch.Generator().manual_seed(0)

    @property
    def normalization(self) -> Normalization:
        return Normalization(shift=self.mean, scale=[1 / value for value in self.std])

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        for axis, size in zip("HW", batch.shape[2:], strict=True):
            if not self.input.sizes[axis].allows(size):
                raise ValueError(f"{axis} is {size}, expected {self.input.sizes[axis]}")
        with torch.inference_mode():
            mean, logvar = self.module.down(batch).chunk(2, dim=1)
            return self.finish(mean, logvar.clamp(-30, 20))

    def finish(self, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        return {"mean": mean, "logvar": logvar}

    def decode(self, latents: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.module.up(latents)  # type: ignore[no-any-return]

    def fingerprint(self) -> dict[str, Any]:
        return {"weights": hash_tensors(self.module.down.state_dict())}

    def last_layer(self) -> nn.Parameter:
        weight: nn.Parameter = self.module.up.weight  # type: ignore[assignment]
        return weight

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean.tolist(), std.tolist()

    def save(self, folder: Path) -> None:
        write(folder, self.module, self.mean, self.std)


def write(folder: Path, module: nn.Module, mean: list[float], std: list[float]) -> None:
    weights = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    tensors = {"mean": torch.tensor(mean), "std": torch.tensor(std), **weights}
    save_file(tensors, folder / "tensors.safetensors")


def write_as_laid_out(self: Patches, folder: Path) -> None:
    save_file(self.module.state_dict(), folder / "tensors.safetensors")


class PatchesContract(EncoderContract):
    trains = False

    def __init__(self, build: Callable[..., Any]) -> None:
        def build_patches(config: PatchesConfig, context: BuildContext) -> Any:
            return build(context) if config.model is None else build(context, config.model)

        self.spec = EncoderSpec(
            "patches", "a linear map of patches", PatchesConfig, build_patches
        )

    def entry_point(self) -> None:
        """Declared here only."""


class TrainedContract(PatchesContract):
    trains = True


class Means:
    """A good deterministic encoder without weights, on sound, which neither decodes nor trains."""

    modality = "audio"
    input = InputSpec(
        channels=1,
        range=(0.0, 1.0),
        sizes={"L": SizeRule(multiple=4, offset=1, minimum=5)},
        axes="CL",
    )
    layout = LatentLayout(name="latent", kind="deterministic", axes="CL", channels=1, downscale=4)
    normalization = Normalization()

    def __init__(self, context: BuildContext) -> None:
        pass

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        if not self.input.sizes["L"].allows(batch.shape[2]):
            raise ValueError("L must be 4 k + 1")
        return {"latent": nn.functional.avg_pool1d(batch, 4, ceil_mode=True)}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


class Signs(Means):
    """A good quantized encoder."""

    layout = replace(Means.layout, kind="quantised", axes="L", channels=1)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        return {"indices": (super().encode(batch)["latent"][:, 0] > 0.5).long()}


class MaskedMeans(Means):
    """A good encoder of ragged rows, which takes the mask and gives its own."""

    input = InputSpec(channels=1, range=(0.0, 1.0), axes="CL", takes_mask=True)
    layout = replace(Means.layout, ragged_axis="L")

    def encode(self, batch: Any) -> dict[str, Tensor]:
        values, mask = (
            self.seen(batch),
            nn.functional.max_pool1d(batch["mask"][:, None], 4, ceil_mode=True)[:, 0],
        )
        return {
            "latent": nn.functional.avg_pool1d(values, 4, ceil_mode=True),
            "mask": self.finish_mask(mask > 0),
        }

    def seen(self, batch: Any) -> Tensor:
        return batch["values"] * batch["mask"][:, None]  # type: ignore[no-any-return]

    def finish_mask(self, mask: Tensor) -> Tensor:
        return mask


class PaddedMeans(Means):
    """A good encoder of ragged rows that doesn't take their mask."""

    layout = replace(Means.layout, ragged_axis="L")


class Clips(Means):
    """A good encoder of videos."""

    modality = "video"
    input = InputSpec(
        channels=3, sizes={"T": SizeRule(4, 1), "H": EIGHTS, "W": EIGHTS}, axes="CTHW"
    )
    layout = LatentLayout("latent", "deterministic", "CTHW", 3, (4, 8, 8))

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        wrong = [
            axis
            for axis, size in zip("THW", batch.shape[2:], strict=True)
            if not self.input.sizes[axis].allows(size)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} isn't a size that is taken")
        return {"latent": nn.functional.avg_pool3d(batch, (4, 8, 8), ceil_mode=True)}


class WithoutWeightsContract(PatchesContract):
    def perturb(self, encoder: Encoder) -> None:
        """There are no weights."""


# ---------------------------------------------------------------- broken in one way each


def crop(self: Patches, batch: Tensor) -> dict[str, Tensor]:
    height, width = (size // 8 * 8 for size in batch.shape[2:])
    return Patches.encode(self, batch[:, :, :height, :width])


def raise_runtime_error(self: Patches, batch: Tensor) -> dict[str, Tensor]:
    try:
        return Patches.encode(self, batch)
    except ValueError as error:
        raise RuntimeError("odd size") from error


def keep_graph(self: Patches, batch: Tensor) -> dict[str, Tensor]:
    Patches.encode(self, batch)
    mean, logvar = self.module.down(batch).chunk(2, dim=1)
    return {"mean": mean, "logvar": logvar}


def change_input(self: Patches, batch: Tensor) -> dict[str, Tensor]:
    latents = Patches.encode(self, batch)
    batch.neg_()
    return latents


def note_use(self: Any, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    self.used = True
    return {"mean": mean, "logvar": logvar}


def seed_torch(self: Patches, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(123)
    return {"mean": mean, "logvar": logvar}


def with_mean(function: Callable[[Any, Tensor], Tensor]) -> dict[str, Any]:
    """Members of an encoder whose mean is another one."""
    return {"finish": lambda self, mean, logvar: {"mean": function(self, mean), "logvar": logvar}}


def with_logvar(function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Members of an encoder whose logvar is another one."""
    return {"finish": lambda self, mean, logvar: {"mean": mean, "logvar": function(logvar)}}


def with_parts(function: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """Members of an encoder with further parts, or other ones, in its fingerprint."""
    return {"fingerprint": lambda self: Patches.fingerprint(self) | function(self)}


def with_decoded(function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Members of an encoder that decodes to something else."""
    return {"decode": lambda self, latents: function(Patches.decode(self, latents))}


def with_forward(function: Callable[[Reconstruction], Any]) -> dict[str, Any]:
    """Members of an encoder whose module's forward gives something else."""

    def build(self: Patches, context: BuildContext, model: str | None = None) -> None:
        Patches.__init__(self, context, model)
        forward = self.module.forward
        self.module.forward = lambda batch: function(forward(batch))  # type: ignore[method-assign]

    return {"__init__": build}


def with_module_decode(function: Callable[[Network, Tensor], Any]) -> dict[str, Any]:
    """Members of an encoder whose module's `decode` is another one, which forward doesn't call."""

    def build(self: Patches, context: BuildContext, model: str | None = None) -> None:
        Patches.__init__(self, context, model)
        module = self.module
        module.decode = lambda latents: function(module, latents)  # type: ignore[method-assign]

    return {"__init__": build}


def in_double(self: Patches, context: BuildContext, model: str | None = None) -> None:
    Patches.__init__(self, context, model)
    self.module.up.register_parameter("unused", nn.Parameter(torch.zeros(2).double()))


def move_logvar(found: Reconstruction) -> Reconstruction:
    assert found.moments is not None
    return replace(found, moments=Moments(found.moments.mean, found.moments.logvar + 1))


def cut_off(found: Reconstruction) -> Reconstruction:
    """As with a detach between encoder and decoder, and moments that have a gradient of their own.
    """
    assert found.moments is not None
    return replace(found, moments=Moments(found.moments.mean * 1, found.moments.logvar))


def halve_the_range(self: Patches, latents: Tensor) -> Tensor:
    normal = self.normalization
    return Patches.decode(self, normal.apply(latents) * 2 + torch.tensor(self.mean).view(-1, 1, 1))


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "decodes normalized latents": (
        "test_decode_takes_raw_latents",
        {"decode": halve_the_range},
    ),
    "no modality": ("test_declarations_fit_together", {"modality": ""}),
    "an axis twice": (
        "test_declarations_fit_together",
        {"input": replace(Patches.input, axes="CHH")},
    ),
    "a ragged axis that isn't there": (
        "test_declarations_fit_together",
        {"layout": replace(Patches.layout, ragged_axis="T")},
    ),
    "a scale of zero": (
        "test_normalization_can_be_undone",
        {"normalization": Normalization(scale=0.0)},
    ),
    "a shift for five channels": (
        "test_normalization_can_be_undone",
        {"normalization": Normalization(shift=[0.0] * 5)},
    ),
    "a latent besides the moments": (
        "test_latents_have_the_names_of_their_kind",
        {"finish": lambda self, mean, logvar: {"mean": mean, "logvar": logvar, "latent": mean}},
    ),
    "another downscale": (
        "test_latents_have_the_shape_of_the_layout",
        {"layout": replace(Patches.layout, downscale=16)},
    ),
    "other channels": (
        "test_latents_have_the_shape_of_the_layout",
        {"layout": replace(Patches.layout, channels=16)},
    ),
    "whole numbers": (
        "test_latents_are_floats_and_indices_whole_numbers",
        with_logvar(lambda logvar: logvar.int()),
    ),
    "nan": (
        "test_latents_are_finite",
        with_logvar(
            lambda logvar: torch.where(logvar == logvar.amax((1, 2, 3), True), torch.nan, logvar)
        ),
    ),
    "logvar too low": ("test_logvar_is_within_its_limits", with_logvar(lambda logvar: logvar - 40)),
    "logvar too high": (
        "test_logvar_is_within_its_limits",
        with_logvar(lambda logvar: logvar + 40),
    ),
    "keeps the graph": ("test_latents_need_no_gradient", {"encode": keep_graph}),
    "noise below any tolerance": (
        "test_encoding_again_gives_equal_latents",
        with_mean(
            lambda self, mean: mean + 1e-6 * torch.rand(mean.shape, generator=self.generator)
        ),
    ),
    "number of the build": (
        "test_two_builds_give_equal_latents",
        with_mean(lambda self, mean: mean + 1e-3 * self.number),
    ),
    "centers the batch": (
        "test_a_batch_gives_what_its_rows_give",
        with_mean(lambda self, mean: mean - mean.mean()),
    ),
    "normalizes": (
        "test_latents_are_unscaled",
        with_mean(lambda self, mean: self.normalization.apply(mean)),
    ),
    "changes its input": ("test_encode_leaves_its_input_alone", {"encode": change_input}),
    "draws from torch": (
        "test_encode_leaves_random_numbers_alone",
        with_mean(lambda self, mean: mean + 0 * torch.rand(1)),
    ),
    "draws from NumPy": (
        "test_encode_leaves_random_numbers_alone",
        with_mean(lambda self, mean: mean + 0 * float(np.random.rand())),
    ),
    "draws from Python": (
        "test_encode_leaves_random_numbers_alone",
        with_mean(lambda self, mean: mean + 0 * random.random()),
    ),
    "seeds torch": ("test_encode_leaves_random_numbers_alone", {"finish": seed_torch}),
    "crops odd sizes": ("test_sizes_it_does_not_take_raise_value_error", {"encode": crop}),
    "raises RuntimeError": (
        "test_sizes_it_does_not_take_raise_value_error",
        {"encode": raise_runtime_error},
    ),
    "number in the fingerprint": (
        "test_fingerprint_is_texts_by_name",
        with_parts(lambda self: {"channels": 4}),
    ),
    "fingerprint of the build": (
        "test_fingerprint_is_stable",
        with_parts(lambda self: {"build": str(self.number)}),
    ),
    "fingerprint of use": (
        "test_fingerprint_is_stable",
        with_parts(lambda self: {"used": str(hasattr(self, "used"))}) | {"finish": note_use},
    ),
    "rounded fingerprint": (
        "test_fingerprint_changes_with_a_single_bit_of_the_weights",
        with_parts(lambda self: {"weights": f"{float(self.module.down.weight.sum()):.3f}"}),
    ),
    "weights in the decoder's part": (
        "test_fingerprint_changes_with_a_single_bit_of_the_weights",
        {
            "fingerprint": lambda self: {
                "decoder": hash_tensors(self.module.state_dict()),
                "kind": "patches",
            }
        },
    ),
    "decodes to bytes": (
        "test_decoded_batch_is_like_the_input",
        with_decoded(lambda batch: (batch + 1) * 127.5),
    ),
    "decodes to another size": (
        "test_decoded_batch_is_like_the_input",
        with_decoded(lambda batch: batch.repeat(1, 1, 2, 2)),
    ),
    "decodes to nan": (
        "test_decoded_batch_is_like_the_input",
        with_decoded(lambda batch: batch * torch.nan),
    ),
    "decodes in place": (
        "test_decode_leaves_its_latents_alone",
        {"decode": lambda self, latents: Patches.decode(self, latents.mul_(2))},
    ),
    "forward gives a tensor": (
        "test_forward_trains_the_last_layer",
        with_forward(lambda found: found.output),
    ),
    "forward without moments": (
        "test_forward_trains_the_last_layer",
        with_forward(lambda found: replace(found, moments=None)),
    ),
    "forward of another size": (
        "test_forward_trains_the_last_layer",
        with_forward(lambda found: replace(found, output=found.output[:, :, 1:])),
    ),
    "last layer that isn't used": (
        "test_forward_trains_the_last_layer",
        {"last_layer": lambda self: nn.Parameter(torch.zeros(3))},
    ),
}

BROKEN_TRAINING: dict[str, tuple[str, dict[str, Any]]] = {
    "weights in double precision": ("test_trained_weights_are_float32", {"__init__": in_double}),
    "forward with other moments": (
        "test_forward_gives_what_encode_and_decode_give",
        with_forward(move_logvar),
    ),
    "an extra loss of the batch": (
        "test_forward_gives_what_encode_and_decode_give",
        with_forward(lambda found: replace(found, extra_losses={"own": found.output.mean()})),
    ),
    "decodes with weights that aren't trained": (
        "test_forward_gives_what_encode_and_decode_give",
        {"decode": lambda self, latents: Network(1).decode(latents).detach()},
    ),
    "moments that aren't decoded": (
        "test_a_gradient_goes_back_to_what_was_encoded",
        with_forward(cut_off),
    ),
    "a module that decodes without a gradient": (
        "test_the_module_decodes_with_a_gradient",
        with_module_decode(lambda module, latents: torch.no_grad()(module.up)(latents)),
    ),
    "saves the weights of before": (
        "test_save_writes_what_is_read_again",
        {"save": lambda self, folder: write(folder, self.untrained, self.mean, self.std)},
    ),
    "saves weights as training laid them out": (
        "test_save_writes_what_is_read_again",
        {"save": write_as_laid_out},
    ),
    "saves nothing": ("test_save_writes_what_is_read_again", {"save": lambda self, folder: None}),
    "forgets its statistics": (
        "test_statistics_reach_the_normalization",
        {"set_statistics": lambda self, mean, std: None},
    ),
}


ALSO = {
    "a shift for five channels": {"test_declarations_fit_together"},
    "other channels": {"test_declarations_fit_together"},
    "a mask of another length": {"test_what_a_mask_leaves_out_changes_nothing"},
    "an axis twice": {"test_latents_have_the_shape_of_the_layout"},
    "saves weights as training laid them out": {"test_statistics_reach_the_normalization"},
    "saves nothing": {"test_statistics_reach_the_normalization"},
    "weights in double precision": {
        "test_save_writes_what_is_read_again",
        "test_statistics_reach_the_normalization",
    },
    "a ragged axis that isn't there": {"test_a_mask_fits_the_latents"},
}
"""Checks that a double can't help failing besides its own."""


@pytest.mark.parametrize("name", BROKEN)
def test_an_encoder_broken_in_one_way_fails_the_check_for_it(name: str, tmp_path: Path) -> None:
    check, members = BROKEN[name]
    assert set(
        find_failures(PatchesContract(type("Broken", (Patches,), members)), tmp_path)
    ) - ALSO.get(name, set()) == {check}


@pytest.mark.parametrize("name", BROKEN_TRAINING)
def test_an_encoder_whose_training_is_broken_in_one_way_fails_the_check_for_it(
    name: str, tmp_path: Path
) -> None:
    check, members = BROKEN_TRAINING[name]
    failures = set(find_failures(TrainedContract(type("Broken", (Patches,), members)), tmp_path))
    assert failures - ALSO.get(name, set()) == {check}


BROKEN_MASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "a mask of another length": (
        "test_a_mask_fits_the_latents",
        {"finish_mask": lambda self, mask: mask.repeat(1, 2)},
    ),
    "a mask of nothing": (
        "test_a_mask_fits_the_latents",
        {"finish_mask": lambda self, mask: torch.zeros_like(mask)},
    ),
    "blind to the mask": (
        "test_what_a_mask_leaves_out_changes_nothing",
        {"seen": lambda self, batch: batch["values"]},
    ),
    "folds the ragged axis": (
        "test_declarations_fit_together",
        {"normalization": Normalization(fold={"L": 2})},
    ),
}


@pytest.mark.parametrize("name", BROKEN_MASKS)
def test_an_encoder_of_masked_rows_broken_in_one_way_fails_the_check_for_it(
    name: str, tmp_path: Path
) -> None:
    check, members = BROKEN_MASKS[name]
    failures = find_failures(
        WithoutWeightsContract(type("Broken", (MaskedMeans,), members)), tmp_path
    )
    assert set(failures) - ALSO.get(name, set()) == {check}


@pytest.mark.parametrize(("axis", "downscale"), [("T", (8, 8, 8)), ("W", (4, 8, 4))])
def test_a_layout_that_lies_about_one_axis_is_found(
    axis: str, downscale: tuple[int, ...], tmp_path: Path
) -> None:
    lying = type("Lying", (Clips,), {"layout": replace(Clips.layout, downscale=downscale)})
    failures = find_failures(WithoutWeightsContract(lying), tmp_path)
    assert set(failures) == {"test_latents_have_the_shape_of_the_layout"}


class ScaledElsewhereContract(PatchesContract):
    """Of an encoder that scales, though not by its own `normalization`."""

    def __init__(self) -> None:
        super().__init__(
            type(
                "Scaled",
                (Patches,),
                {"factor": 2.0} | with_mean(lambda self, mean: mean * self.factor),
            )
        )

    def make_renormalized(self, tmp_path: Path) -> Any:
        encoder = self.build(tmp_path)
        encoder.factor = 3.0
        return encoder


def test_an_encoder_that_scales_by_other_means_is_seen_where_another_normalization_can_be_had(
    tmp_path: Path,
) -> None:
    assert set(find_failures(ScaledElsewhereContract(), tmp_path)) == {"test_latents_are_unscaled"}


def test_an_encoder_without_weights_has_to_say_so(tmp_path: Path) -> None:
    failures = find_failures(PatchesContract(Means), tmp_path)
    assert set(failures) == {"test_fingerprint_changes_with_a_single_bit_of_the_weights"}
    assert "override perturb()" in str(failures.popitem()[1])


def test_good_encoders_pass_every_check(tmp_path: Path) -> None:
    for contract in (
        PatchesContract(Patches),
        TrainedContract(Patches),
        *map(WithoutWeightsContract, (Means, Signs, MaskedMeans, PaddedMeans, Clips)),
    ):
        folder = tmp_path / str(id(contract))
        folder.mkdir()
        assert find_failures(contract, folder) == {}


def test_an_encoder_that_lacks_a_member_breaks_its_protocol(tmp_path: Path) -> None:
    assert "test_build_gives_what_the_hook_promises" in find_failures(
        PatchesContract(lambda context: object()), tmp_path
    )


def test_every_check_for_encoders_is_proved() -> None:
    proved = {check for check, _ in [*BROKEN.values(), *BROKEN_TRAINING.values(), *BROKEN_MASKS.values()]}
    assert proved | {*check_names(PluginContract)} == set(check_names(EncoderContract))

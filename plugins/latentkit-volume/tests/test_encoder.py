"""The network of volume-kl, and its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from latentkit_volume.encoder import VolumeKLEncoder, open_volume_kl
from latentkit_volume.network import Architecture, depth_to_space, initial_basis, space_to_depth
from latentkit_volume.plugin import VolumeKLConfig
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.contracts import BuildContext, Reconstruction
from latentkit.errors import EncoderError

SMALL: dict[str, Any] = {"init": "random", "widths": (4, 6), "blocks": (1, 1)}


def open_small(seed: int = 0, **config: Any) -> VolumeKLEncoder:
    return open_volume_kl(VolumeKLConfig(**{**SMALL, **config}), BuildContext(seed=seed))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)


def shaken(encoder: VolumeKLEncoder) -> VolumeKLEncoder:
    """With weights none of which is zero, as a trained network has them."""
    with torch.no_grad():
        for number, weight in enumerate(encoder.module.parameters()):
            weight.add_(
                0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            )
    return encoder


def test_cubes_of_voxels_become_channels_and_voxels_again() -> None:
    volumes = draw(2, 3, 4, 6, 8)
    packed = space_to_depth(volumes, 2)
    assert packed.shape == (2, 24, 2, 3, 4)
    for c, i, j, k in [(0, 0, 0, 0), (2, 1, 0, 1), (1, 0, 1, 1)]:
        assert torch.equal(packed[:, c * 8 + i * 4 + j * 2 + k], volumes[:, c, i::2, j::2, k::2])
    assert torch.equal(depth_to_space(packed, 2), volumes)


@pytest.mark.parametrize(("downscale", "channels"), [(4, 1), (8, 1), (4, 2)])
def test_the_linear_start_gives_slow_waves_back_exactly(
    downscale: Literal[4, 8], channels: int
) -> None:
    """Of orthonormal waves what is left out is all that is lost: flat volumes come through as they
    are.
    """
    shape = Architecture(
        channels=channels, latent_channels=4, downscale=downscale, widths=(4, 6), blocks=(1, 1)
    )
    waves, spreads = initial_basis(shape)
    torch.testing.assert_close(waves @ waves.T, torch.eye(4), atol=1e-5, rtol=0)
    assert spreads.tolist() == sorted(spreads.tolist(), reverse=True)
    encoder = open_small(downscale=downscale, channels=channels)
    flat = (
        torch.linspace(-1, 1, 2 * channels)
        .reshape(2, channels, 1, 1, 1)
        .expand(2, channels, 8, 8, 8)
    )
    torch.testing.assert_close(
        encoder.decode(encoder.encode(flat)["mean"]), flat, atol=1e-5, rtol=0
    )


def test_latents_of_a_patch_are_those_of_the_whole_away_from_its_borders() -> None:
    encoder = shaken(open_small())
    volume = draw(1, 1, 48, 16, 16)
    whole, part = encoder.encode(volume)["mean"], encoder.encode(volume[:, :, :40])["mean"]
    torch.testing.assert_close(part[:, :, :5], whole[:, :, :5], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(part[:, :, 9], whole[:, :, 9], atol=1e-5)


def test_a_saved_model_is_the_same_with_the_statistics_it_was_given(tmp_path: Path) -> None:
    encoder = shaken(open_small(latent_channels=3, channels=2, downscale=8))
    encoder.set_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 1.0, 4.0]))
    encoder.save(tmp_path)
    loaded = open_volume_kl(
        VolumeKLConfig(model=tmp_path.name), BuildContext(recipe_dir=tmp_path.parent)
    )
    assert loaded.fingerprint() == encoder.fingerprint()
    assert (loaded.input, loaded.layout) == (encoder.input, encoder.layout)
    raw = torch.tensor([2.0, 0.0, 11.0]).reshape(3, 1, 1, 1)
    assert loaded.normalization.apply(raw, "CDHW").flatten().tolist() == [2.0, -2.0, 2.0]
    volumes = draw(1, 2, 16, 8, 8)
    assert torch.equal(loaded.encode(volumes)["mean"], encoder.encode(volumes)["mean"])
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {
        torch.float32
    }


def test_random_weights_follow_the_seed() -> None:
    assert open_small().fingerprint() == open_small().fingerprint()
    assert open_small().fingerprint()["weights"] != open_small(seed=1).fingerprint()["weights"]


def test_training_the_decoder_keeps_the_deciding_part_of_the_fingerprint() -> None:
    encoder = open_small()
    before = encoder.fingerprint()
    with torch.no_grad():
        encoder.last_layer().add_(1.0)
    after = encoder.fingerprint()
    assert before["weights"] == after["weights"]
    assert before["decoder"] != after["decoder"]


def test_half_precision_is_near_full_precision() -> None:
    volumes = draw(1, 1, 16, 16, 16)
    full, half = open_small(), open_small(dtype="bfloat16")
    assert half.encode(volumes)["mean"].dtype == torch.bfloat16
    torch.testing.assert_close(
        half.encode(volumes)["mean"].float(), full.encode(volumes)["mean"], atol=0.05, rtol=0.05
    )


def test_forward_draws_from_the_posterior_that_encode_gives() -> None:
    encoder = shaken(open_small())
    volumes = draw(2, 1, 16, 16, 16)
    torch.manual_seed(5)
    found = encoder.module(volumes)
    assert isinstance(found, Reconstruction)
    assert found.moments is not None
    expected = encoder.encode(volumes)
    torch.testing.assert_close(found.moments.mean, expected["mean"])
    torch.manual_seed(5)
    noise = torch.randn_like(
        found.moments.mean
    )  # in its memory format, in whose order values are drawn
    torch.testing.assert_close(
        found.latents, expected["mean"] + torch.exp(expected["logvar"] / 2) * noise
    )
    torch.testing.assert_close(found.output, encoder.decode(found.latents.detach()))


# ---------------------------------------------------------------- what can't be used


@pytest.mark.parametrize(
    "shape", [(1, 1, 16, 16), (1, 2, 16, 16, 16), (1, 1, 16, 18, 16), (1, 1, 16, 0, 16)]
)
def test_other_inputs_are_refused_by_their_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected \(N, 1, D, H, W\) with D, H and W divisible by 4, got "
        + " x ".join(map(str, shape)),
    ):
        open_small().encode(torch.zeros(shape))


def test_other_latents_are_refused_by_their_shape() -> None:
    with pytest.raises(ValueError, match=r"expected latents \(N, 4, d, h, w\), got 1 x 4 x 4 x 4"):
        open_small().decode(torch.zeros(1, 4, 4, 4))


def write_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rename_weight(folder: Path, **_: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["decoder.other"] = tensors.pop("decoder.voxels.bias")
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            "No such file or directory; expected the folder of a volume-kl model",
        ),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            r"config\.json: not that of a volume-kl model: Invalid JSON",
        ),
        (
            lambda folder: write_config(folder, kind="vqgan"),
            r"not that of a volume-kl model: kind: Input should be 'volume-kl'",
        ),
        (
            lambda folder: write_config(folder, depth=3),
            r"not that of a volume-kl model: depth: Extra inputs are not permitted",
        ),
        (
            lambda folder: write_config(folder, latents_mean=[0.0]),
            r"latents_mean: expected 4 numbers, got 1",
        ),
        (
            lambda folder: write_config(folder, widths=[0, 8]),
            r"widths\.0: Input should be greater than 0",
        ),
        (
            lambda folder: write_config(folder, widths=[4, 8]),
            r"model\.safetensors: the weights don't fit .*: size mismatch for .* more\)$",
        ),
        (rename_weight, r"the weights don't fit .*decoder\.voxels\.bias"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99),
            r"model\.safetensors: the weights can't be read",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            r"model\.safetensors: the weights can't be read",
        ),
    ],
)
def test_a_folder_that_is_no_model_gives_one_message_with_its_file(
    damage: Any, message: str, tmp_path: Path
) -> None:
    open_small().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(EncoderError, match=message) as caught:
        open_volume_kl(VolumeKLConfig(model=str(tmp_path)), BuildContext())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "folder", "channels": 2},
            r"give model, whose config\.json says what it is, or channels, not both",
        ),
        ({"init": "random", "latent_channels": 65}, "latent_channels: at most 64"),
        ({}, "give model .the folder that training wrote., or init: random"),
        ({"model": "folder", "init": "random"}, "or init: random"),
        ({"downscale": 6}, "Input should be 4 or 8"),
        ({"widths": (0, 4)}, "Input should be greater than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VolumeKLConfig(**options)

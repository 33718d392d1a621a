"""The built-in KL autoencoder: its latents, its files, its refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.contracts import BuildContext, Decodes, Encoder, Trainable
from latentkit.encoders.hashing import hash_tensors
from latentkit.encoders.options import TinyKLConfig
from latentkit.encoders.tiny_kl import SHIPPED, WEIGHTS_NAME, TinyKLEncoder, open_tiny_kl
from latentkit.encoders.tiny_kl_network import TinyKL
from latentkit.errors import EncoderError


def untrained(seed: int = 0) -> TinyKLEncoder:
    return open_tiny_kl(TinyKLConfig(init="random"), BuildContext(seed=seed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model whose residual branches give something."""
    encoder = untrained()
    with torch.no_grad():
        for parameter in encoder.module.parameters():
            parameter.add_(
                torch.randn(
                    parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
                ),
                alpha=0.01,
            )
    encoder.set_statistics(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.5, 1.0, 2.0, 4.0]))
    encoder.save(tmp_path / "model")
    return tmp_path / "model"


def reopened(folder: Path, **options: str) -> TinyKLEncoder:
    return open_tiny_kl(
        TinyKLConfig(model=folder.name, **options), BuildContext(recipe_dir=folder.parent)
    )


def photograph() -> np.ndarray:
    from skimage import data

    picture: np.ndarray = data.astronaut()  # type: ignore[no-untyped-call]
    return picture


# ---------------------------------------------------------------- the shipped weights


@pytest.mark.parametrize(("name", "lowest_psnr"), [("tiny-kl", 26.5), ("tiny-kl-16", 31.0)])
def test_shipped_weights_reconstruct_a_photograph(name: str, lowest_psnr: float) -> None:
    picture = photograph()
    encoder = open_tiny_kl(TinyKLConfig(), BuildContext(), name)
    batch = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    decoded = encoder.decode(encoder.encode(batch)["mean"])
    pixels = np.clip(np.rint((decoded[0].permute(1, 2, 0).double().numpy() + 1) * 127.5), 0, 255)
    psnr = 10 * math.log10(255**2 / np.square(pixels - picture).mean())
    assert psnr > lowest_psnr


@pytest.mark.parametrize(("name", "channels"), [("tiny-kl", 4), ("tiny-kl-16", 16)])
def test_shipped_weights_are_small_and_measured(name: str, channels: int) -> None:
    assert (SHIPPED / name / WEIGHTS_NAME).stat().st_size <= 4_000_000
    picture = torch.from_numpy(photograph()).permute(2, 0, 1)[None].float() / 127.5 - 1
    encoder = open_tiny_kl(TinyKLConfig(), BuildContext(), name)
    latents = encoder.normalization.apply(encoder.encode(picture)["mean"])
    assert latents.shape[1] == encoder.layout.channels == channels
    assert latents.mean().abs() < 0.5
    assert 0.5 < latents.std() < 2.0


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        TinyKL(channels=17)


def test_diffusers_from_pretrained_gives_the_same_latents_as_the_encoder() -> None:
    network = TinyKL.from_pretrained(SHIPPED / "tiny-kl").to(memory_format=torch.channels_last)
    batch = torch.rand(2, 3, 24, 40).mul(2).sub(1).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected = network.encode(batch)
    found = open_tiny_kl(TinyKLConfig(), BuildContext()).encode(batch)
    assert torch.equal(found["mean"], expected.mean)
    assert torch.equal(found["logvar"], expected.logvar)


# ---------------------------------------------------------------- latents


def test_it_is_an_encoder_that_decodes_and_can_be_trained() -> None:
    encoder = untrained()
    assert isinstance(encoder, Encoder)
    assert isinstance(encoder, Decodes)
    assert isinstance(encoder, Trainable)


def test_an_untrained_network_is_four_functions_of_the_cosine_transform() -> None:
    picture = torch.rand(1, 3, 8, 8) * 2 - 1
    red, green, blue = (np.asarray(plane, np.float64) for plane in picture[0])
    luma = (red + green + blue) / math.sqrt(3)
    wave = np.array([math.sqrt(2) * math.cos((place + 0.5) * math.pi / 8) for place in range(8)])
    expected = [
        luma.sum() / 8 / 7,
        (luma * wave[None, :]).sum() / 8 / 2,
        (luma * wave[:, None]).sum() / 8 / 2,
        ((red - blue) / math.sqrt(2)).sum() / 8 / 2,
    ]
    assert untrained().encode(picture)["mean"].flatten().tolist() == pytest.approx(
        expected, abs=1e-5
    )


def test_an_untrained_network_gives_gray_back() -> None:
    encoder = untrained()
    gray = torch.full((1, 3, 16, 24), 0.25)
    torch.testing.assert_close(encoder.decode(encoder.encode(gray)["mean"]), gray)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (64, 128), (136, 24)])
def test_any_multiple_of_eight_is_taken(height: int, width: int) -> None:
    encoder = untrained()
    latents = encoder.encode(torch.zeros(2, 3, height, width))
    assert latents["mean"].shape == latents["logvar"].shape == (2, 4, height // 8, width // 8)
    assert encoder.decode(latents["mean"]).shape == (2, 3, height, width)


@pytest.mark.parametrize("shape", [(1, 3, 30, 40), (1, 3, 40, 30), (1, 1, 32, 32), (3, 32, 32)])
def test_another_shape_is_refused_by_its_numbers(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=" x ".join(map(str, shape))):
        untrained().encode(torch.zeros(shape))


def test_logvar_stays_in_range() -> None:
    encoder = untrained()
    bias = encoder.module.get_parameter("encoder.moments.bias")
    with torch.no_grad():
        bias[4:] = torch.tensor([-1e6, 0.0, 20.0, 1e6])
    assert encoder.encode(torch.zeros(1, 3, 8, 8))["logvar"].flatten().tolist() == [
        -30.0,
        -12.0,
        -11.0,
        20.0,
    ]


def test_training_draws_from_the_posterior_with_torchs_random_numbers() -> None:
    encoder = untrained()
    batch = torch.rand(2, 3, 16, 16)
    torch.manual_seed(3)
    found = encoder.module(batch)
    torch.manual_seed(3)
    noise = torch.randn_like(found.moments.mean)
    torch.testing.assert_close(
        found.latents, found.moments.mean + (found.moments.logvar / 2).exp() * noise
    )
    torch.testing.assert_close(found.output, encoder.decode(found.latents))


def test_random_weights_follow_from_the_seed_and_leave_torchs_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    assert untrained(1).fingerprint() == untrained(1).fingerprint() != untrained(2).fingerprint()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_latents_come_in_the_dtype_asked_for(folder: Path, dtype: str) -> None:
    latents = reopened(folder, dtype=dtype).encode(torch.zeros(1, 3, 8, 8))
    assert latents["mean"].dtype == latents["logvar"].dtype == getattr(torch, dtype)


# ---------------------------------------------------------------- files


def test_what_is_saved_is_opened_alike_up_to_float16(folder: Path) -> None:
    encoder = reopened(folder)
    encoder.save(folder.parent / "again")
    assert (folder / WEIGHTS_NAME).read_bytes() == (
        folder.parent / "again" / WEIGHTS_NAME
    ).read_bytes()
    assert encoder.fingerprint() == reopened(folder.parent / "again").fingerprint()


def test_encoding_does_not_read_the_decoder(folder: Path) -> None:
    encoder = reopened(folder)
    encoder.encode(torch.zeros(1, 3, 8, 8))
    (folder / WEIGHTS_NAME).unlink()
    encoder.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(FileNotFoundError):
        encoder.decode(torch.zeros(1, 4, 1, 1))


def test_the_fingerprint_tells_the_halves_apart(folder: Path) -> None:
    before = reopened(folder).fingerprint()
    tensors = load_file(folder / WEIGHTS_NAME)

    def half(prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    assert before == {
        "weights": hash_tensors(half("encoder.")),
        "decoder": hash_tensors(half("decoder.")),
    }
    tensors["decoder.pixels.bias"] += 1
    save_file(tensors, folder / WEIGHTS_NAME)
    after = reopened(folder).fingerprint()
    assert after["weights"] == before["weights"]
    assert after["decoder"] != before["decoder"]
    assert reopened(folder, dtype="bfloat16").fingerprint()["weights"] != before["weights"]


def test_measured_statistics_become_the_normalization(folder: Path) -> None:
    latents = torch.randn(2, 4, 3, 5)
    means, deviations = (1.0, 2.0, 3.0, 4.0), (0.5, 1.0, 2.0, 4.0)
    expected = torch.stack([(latents[:, c] - means[c]) / deviations[c] for c in range(4)], dim=1)
    torch.testing.assert_close(reopened(folder).normalization.apply(latents), expected)
    config = json.loads((folder / "config.json").read_text())
    assert config["shift_factor"] == pytest.approx(2.5)
    variance = (0.25 + 1 + 4 + 16) / 4 + (1.5**2 + 0.5**2 + 0.5**2 + 1.5**2) / 4
    assert config["scaling_factor"] == pytest.approx(1 / math.sqrt(variance))


def test_without_measured_channels_the_scalars_are_used(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "latents_mean": None,
        "latents_std": None,
        "shift_factor": 0.5,
        "scaling_factor": 2.0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert (
        reopened(folder).normalization.apply(torch.ones(1, 4, 1, 1)).flatten().tolist() == [1.0] * 4
    )


# ---------------------------------------------------------------- refusals


def test_weights_that_dont_fit_are_refused_by_name(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS_NAME)
    tensors["encoder.extra"] = torch.zeros(1)
    tensors["decoder.pixels.bias"] = torch.zeros(5)
    del tensors["encoder.start.weight"]
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(EncoderError) as caught:
        reopened(folder)
    text = str(caught.value)
    assert "missing: encoder.start.weight" in text
    assert "unexpected: encoder.extra" in text
    assert "decoder.pixels.bias (5,), expected (48,)" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "expected _class_name 'TinyKL', got 'AutoencoderKL'"),
        ({"depth": 3}, "keys that tiny-kl doesn't have: depth"),
        ({"latents_std": [1.0, 2.0]}, "latents_std: expected 4 numbers"),
        ({"encoder_widths": "wide"}, "no network can be built"),
    ],
)
def test_a_config_that_isnt_its_own_is_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=message):
        reopened(folder)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(EncoderError, match=r"nothing.*config\.json"):
        reopened(tmp_path / "nothing")
    (folder / WEIGHTS_NAME).write_bytes(b"not weights")
    with pytest.raises(EncoderError, match="it is damaged, cut off or something else"):
        reopened(folder)
    (folder / WEIGHTS_NAME).write_text("<!doctype html>")
    with pytest.raises(EncoderError, match="is a web page, not weights"):
        reopened(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(EncoderError, match="not JSON"):
        reopened(folder)

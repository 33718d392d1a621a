"""Every class with a continuous latent trains: gradients reach both halves, what is saved loads,
statistics land where pipelines look.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoders.diffusers_normalization import put_statistics
from latentkit.encoders.diffusers_table import TRAITS

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())
TRAINED = sorted(
    name
    for name in MODELS
    if "-" not in name and not TRAITS[name].codebook and name != "ConsistencyDecoderVAE"
)
WITHOUT_A_PLACE = {
    *(
        "AutoencoderKLKVAE",
        "AutoencoderKLKVAEAudio",
        "AutoencoderKLKVAEVideo",
        "AutoencoderOobleck",
        "AutoencoderRAE",
        "AutoencoderSAME",
    ),
    *("AutoencoderVidTok", "Cosmos3AVAEAudioTokenizer", "LongCatAudioDiTVae"),
}


def open_folder(folder: Path) -> DiffusersEncoder:
    return DiffusersEncoder(folder, None, torch.float32, False, "cpu")


@pytest.mark.parametrize("name", TRAINED)
def test_a_class_trains_and_what_it_saves_loads(name: str, tiny: Any, tmp_path: Path) -> None:
    encoder, batch = open_folder(tiny.folder(name)), tiny.batch(name, rows=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = encoder.module(batch)
    assert made.output.shape == batch.shape
    assert (made.moments is None) == (encoder.layout.kind == "deterministic")
    (made.output - batch).square().mean().backward()
    gradients = {
        weight: weight.grad for weight in encoder.module.parameters() if weight.grad is not None
    }
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    for half in (
        encoder.module.model.encoder,
        encoder.module.model.get_submodule(TRAITS[name].decoder[0]),
    ):
        assert any(
            bool(gradients[weight].any()) for weight in half.parameters() if weight in gradients
        )
    last = encoder.last_layer()
    assert bool(gradients[last].any())
    with torch.no_grad():
        last.add_(1.0)
    encoder.save(tmp_path / "model")
    again = open_folder(tmp_path / "model")
    before, after = encoder.fingerprint(), again.fingerprint()
    assert {part for part in before if before[part] != after[part]} == {"decoder"}


@pytest.mark.parametrize("name", [name for name in TRAINED if name not in WITHOUT_A_PLACE])
def test_measured_statistics_come_back_from_the_saved_model(
    name: str, tiny: Any, tmp_path: Path
) -> None:
    encoder = open_folder(tiny.folder(name))
    channels, axes = encoder.layout.channels, encoder.layout.axes
    mean, std = torch.linspace(-1, 1, channels), torch.linspace(0.5, 1.5, channels)
    encoder.set_statistics(mean, std)
    encoder.save(tmp_path / "model")
    saved = open_folder(tmp_path / "model").normalization
    shape = (1, channels, *{"CHW": (2, 2), "CTHW": (1, 2, 2), "CL": (4,), "CTM": (3, 4)}[axes])
    draws = mean.reshape(1, -1, *[1] * (len(axes) - 1)).expand(shape)
    spread = std.reshape(1, -1, *[1] * (len(axes) - 1)).expand(shape)
    low, high = (saved.apply(draws + sign * spread, axes) for sign in (-1, 1))
    per_channel = TRAITS[name].statistics in ("buffers", "batch-norm") or isinstance(
        saved.shift, list
    )
    if per_channel:
        torch.testing.assert_close((low + high) / 2, torch.zeros_like(low), rtol=0, atol=1e-5)
        torch.testing.assert_close((high - low) / 2, torch.ones_like(low), rtol=1e-4, atol=1e-4)
    else:
        whole = (
            (std.square() + mean.square()).mean().sqrt()
        )  # of all channels together; their means are centered
        torch.testing.assert_close((high - low) / 2, spread / whole, rtol=1e-5, atol=1e-5)


def test_a_model_without_a_place_for_statistics_is_left_alone(tiny: Any) -> None:
    for name in sorted(WITHOUT_A_PLACE):
        model, channels = tiny.load(name), tiny.encoder(name).layout.channels
        config, tensors = dict(model.config), {
            tensor: value.clone() for tensor, value in model.state_dict().items()
        }
        put_statistics(model, TRAITS[name], torch.ones(channels), torch.ones(channels))
        assert dict(model.config) == config
        assert all(
            torch.equal(value, tensors[tensor]) for tensor, value in model.state_dict().items()
        )


def test_a_video_class_trains_on_pictures(tiny: Any) -> None:
    encoder = DiffusersEncoder(
        tiny.folder("AutoencoderKLWan"), None, torch.float32, False, "cpu", modality="image"
    )
    batch = tiny.batch("AutoencoderKLWan", "image")
    made = encoder.module(batch)
    assert made.output.shape == batch.shape
    assert made.moments is not None
    assert made.moments.mean.ndim == 4

"""Photos through autoencoders of every family, from the command line to a batch, and back to
pictures.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit.cli.main import main
from latentkit.errors import RecipeError

MODELS = json.loads(
    (Path(__file__).parents[2] / "unit" / "encoders" / "models.json").read_text()
)
MakePhotos = Callable[..., Path]


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """A tiny model with random weights, as its class saves it, in a folder of the test."""

    def save(name: str, folder: str = "model") -> Path:
        config = MODELS[name]["config"]
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            torch.manual_seed(0)
            getattr(diffusers, config["_class_name"]).from_config(config).save_pretrained(
                tmp_path / folder
            )
        return tmp_path / folder

    return save


@pytest.mark.parametrize(
    ("name", "kind", "shape", "trained_on"),
    [
        ("AutoencoderDC", "deterministic", (4, 16, 16), (4, 16, 16)),
        ("AutoencoderKLFlux2", "gaussian", (4, 16, 16), (16, 8, 8)),
        ("AutoencoderKLQwenImage", "gaussian", (4, 4, 4), (4, 4, 4)),
        ("AutoencoderKLWan", "gaussian", (4, 4, 4), (4, 4, 4)),
        ("AutoencoderKLLTXVideo", "gaussian", (8, 1, 1), (8, 1, 1)),
        ("AutoencoderVidTok-fsq-causal", "quantised", (4, 4), (4, 4)),
    ],
)
def test_photos_become_latents_and_pictures_again(
    name: str,
    kind: str,
    shape: tuple[int, ...],
    trained_on: tuple[int, ...],
    make_photos: MakePhotos,
    save_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    photos, model, output = make_photos(3), save_model(name), tmp_path / "out"
    line = [
        "encode",
        str(photos),
        str(output),
        "--encoder",
        str(model),
        "--size",
        "32",
        "--set",
        "preview=2",
        "--set",
        "batch_size=3",
        "--set",
        "threads=1",
    ]
    assert main(line) == 0
    assert main(["verify", str(output), "--deep"]) == 0
    assert (output / "preview.png").is_file()
    data = lk.open(output)
    assert data.layout.kind == kind
    tensor = data[0]["indices" if kind == "quantised" else "latent"]
    assert tuple(tensor.shape) == trained_on
    assert data.decode(tensor[None]).shape == (1, 3, 32, 32)
    if kind == "gaussian":
        assert tuple(data.moments(0)["mean"].shape) == shape


def test_transparent_pictures_reach_a_model_of_four_channels(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 4), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    model = save_model("AutoencoderKLQwenImage21")
    fixed: dict[str, Any] = {"batch_size": 3, "threads": 1, "output.dtype": "float32"}
    data = lk.encode(tmp_path / "photos", tmp_path / "out", encoder=model, size=32, overrides=fixed)
    batch = torch.from_numpy(pixels).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        expected = (
            diffusers.AutoencoderKLQwenImage21.from_pretrained(model)
            .eval()
            .encode(batch[:, :, None])
            .latent_dist.mean[:, :, 0]
        )
    for number in range(3):
        torch.testing.assert_close(
            data.moments(number)["mean"], expected[number], rtol=1e-5, atol=1e-5
        )


def test_audio_half_of_a_pipeline_is_found_and_refuses_photos(
    make_photos: MakePhotos, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    save_model("AutoencoderOobleck", "pipeline/audio_vae")
    with pytest.raises(RecipeError, match="takes the modality 'audio', got 'image'"):
        lk.encode(make_photos(1), tmp_path / "out", encoder=tmp_path / "pipeline", size=32)


def test_videos_only_refuse_photos(
    make_photos: MakePhotos, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="takes the modality 'video', got 'image'"):
        lk.encode(
            make_photos(1), tmp_path / "out", encoder=save_model("AutoencoderKLMiniMaxH3"), size=32
        )

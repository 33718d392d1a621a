"""What a training run measured of its model's latents: beside the model, per channel, and part of
no hash.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import latentkit
from latentkit.contracts import BuildContext, InputSpec, Sample
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig

FILE = "latent_statistics.json"
SIDE = 32


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(4)


def train(photos: Path, output: Path, use: str, **options: Any) -> Path:
    """The folder of a model that was trained for two steps."""
    half = {"train": options.pop("train")} if "train" in options else {}
    recipe = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": SIDE}},
        "model": {"use": use, "with": options, **half},
        "losses": [{"use": "mse"}],
        "steps": 2,
        "batch_size": 2,
        "output": {"path": str(output)},
    }
    latentkit.run(recipe)
    return output / "model"


def encode(photos: Path, model: Path, output: Path) -> str:
    """The fingerprint of the dataset."""
    encoder = {
        "encoder.use": (
            "tiny-kl" if "TinyKL" in (model / "config.json").read_text() else "diffusers"
        ),
        "encoder.with.model": str(model),
    }
    return latentkit.encode(photos, output, size=SIDE, overrides=encoder).fingerprint


def prepare(photos: Path) -> Tensor:
    modality = ImageModality(ImageConfig(size=SIDE), BuildContext(input=InputSpec(channels=3)))
    views = [
        next(iter(modality.prepare(Sample(path.name, path.read_bytes()))))
        for path in sorted(photos.glob("*.png"))
    ]
    return torch.stack([view.tensor for view in views if isinstance(view.tensor, Tensor)])


def per_channel(latents: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    values = latents.double().transpose(0, 1).flatten(1).numpy()
    return values.mean(axis=1), values.std(axis=1)


def test_statistics_of_mode_and_draw_are_those_of_the_saved_model(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    folder = train(photos, tmp_path / "run", "diffusers", model=str(kl_folder))
    found = json.loads((folder / FILE).read_text())
    model = diffusers.AutoencoderKL.from_pretrained(folder)
    with torch.no_grad():
        posterior = model.encode(prepare(photos)).latent_dist
    mean, std = per_channel(posterior.mode())
    np.testing.assert_allclose(found["mode"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["mode"]["std"], std, rtol=1e-4)
    spread = np.sqrt(std**2 + per_channel(posterior.var)[0])  # Var[z] = Var[mean] + E[variance]
    np.testing.assert_allclose(found["sample"]["std"], spread, rtol=0.1)
    np.testing.assert_allclose(found["sample"]["mean"], mean, atol=0.1 * spread.max())
    assert (found["num_latents"], found["num_values"]) == (
        40,
        40 * 8 * 8,
    )  # ten passes: 4 pictures have few values
    assert model.config.latents_mean is None


def test_the_config_has_what_the_file_has(photos: Path, tmp_path: Path) -> None:
    folder = train(photos, tmp_path / "run", "tiny-kl")
    found, config = (json.loads((folder / name).read_text()) for name in (FILE, "config.json"))
    assert (config["latents_mean"], config["latents_std"]) == (
        found["sample"]["mean"],
        found["sample"]["std"],
    )
    assert len(found["mode"]["mean"]) == len(found["mode"]["std"]) == 4


def test_latents_without_a_posterior_have_no_mode(
    photos: Path, taesd_folder: Path, tmp_path: Path
) -> None:
    folder = train(photos, tmp_path / "run", "diffusers", model=str(taesd_folder))
    found = json.loads((folder / FILE).read_text())
    assert set(found) == {"num_latents", "num_values", "sample"}
    with torch.no_grad():
        latents = diffusers.AutoencoderTiny.from_pretrained(folder).encode(prepare(photos)).latents
    for measured, expected in zip(
        (found["sample"]["mean"], found["sample"]["std"]), per_channel(latents), strict=True
    ):
        np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-6)


def test_an_encoder_that_stays_is_not_measured_again(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    folder = train(photos, tmp_path / "run", "diffusers", model=str(kl_folder), train="decoder")
    assert not (folder / FILE).exists()


@pytest.mark.parametrize("use", ["tiny-kl", "diffusers"])
def test_the_file_is_part_of_no_fingerprint(
    use: str, photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    folder = train(
        photos, tmp_path / "run", use, **({"model": str(kl_folder)} if use == "diffusers" else {})
    )
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns(FILE))
    assert {path.name for path in folder.iterdir()} - {path.name for path in bare.iterdir()} == {
        FILE
    }
    first, second = encode(photos, folder, tmp_path / "first"), encode(
        photos, bare, tmp_path / "second"
    )
    assert first == second
    assert (
        encode(photos, bare, tmp_path / "first") == first
    )  # else it would refuse an output of another model

"""The short command with published weights as they lie around: no config, no recipe."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import latentkit as lk
from latentkit.encoders.published_configs import find_published
from latentkit.errors import EncoderError


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(draw.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(
            folder / f"{number}.png"
        )
    return folder


@pytest.fixture(scope="module")
def taesd() -> dict[str, Tensor]:
    """Random weights of TAESD's true size, by diffusers' names."""
    config = find_published("taesd")
    assert config is not None
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(
            diffusers.AutoencoderTiny.from_config(json.loads(config.read_text())).state_dict()
        )


def half(tensors: dict[str, Tensor], name: str, shift: int) -> dict[str, Tensor]:
    split = (
        (one.split(".", 3), tensor) for one, tensor in tensors.items() if one.startswith(f"{name}.")
    )
    return {f"{int(layer) + shift}.{rest}": tensor for (_, _, layer, rest), tensor in split}


def test_one_set_of_weights_in_four_forms_makes_one_dataset(
    photos: Path, taesd: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(half(taesd, "encoder", 0), tmp_path / "taesd_encoder.pth")
    torch.save(half(taesd, "decoder", 1), tmp_path / "taesd_decoder.pth")
    first = lk.encode(photos, tmp_path / "out", encoder=tmp_path / "taesd_encoder.pth", size=32)
    latents = [first[row]["latent"] for row in range(3)]
    with torch.inference_mode():
        assert latents[0].shape == (4, 4, 4)
    save_file(taesd, tmp_path / "vae.safetensors")
    torch.save(
        {"model": {f"module.{name}": tensor for name, tensor in taesd.items()}, "step": 1},
        tmp_path / "last.ckpt",
    )
    (tmp_path / "folder").mkdir()
    save_file(taesd, tmp_path / "folder" / "diffusion_pytorch_model.fp16.safetensors")
    config = find_published("taesd")
    assert config is not None
    (tmp_path / "folder" / "config.json").write_text(config.read_text())
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")}
    for form in ("vae.safetensors", "last.ckpt", "folder"):
        capsys.readouterr()
        again = lk.encode(photos, tmp_path / "out", encoder=tmp_path / form, size=32)
        assert all(
            torch.equal(torch.as_tensor(again[row]["latent"]), torch.as_tensor(latents[row]))
            for row in range(3)
        )
        assert {
            file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*.parquet")
        } == before


def test_an_encoder_alone_makes_a_dataset_and_is_asked_for_no_pictures(
    photos: Path, taesd: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(half(taesd, "encoder", 0), tmp_path / "taesd_encoder.pth")
    dataset = lk.encode(photos, tmp_path / "out", encoder=tmp_path / "taesd_encoder.pth", size=32)
    assert len(dataset) == 3
    assert (tmp_path / "out" / "preview.png").is_file()  # of the samples alone
    with pytest.raises(EncoderError, match="can't decode"):
        dataset.decode(torch.as_tensor(dataset[0]["latent"])[None])

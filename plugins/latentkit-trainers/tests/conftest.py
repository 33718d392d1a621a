"""A latent dataset of real images, in two sizes of SD 1.x latents, made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latentkit as lk

NAMES = ["cats/0", "cats/1", "cats/2", "dogs/0", "dogs/1", "dogs/2"]
CAPTIONS = ['a "quoted" cat', "two\nlines", "an Ärger, 猫 and 🐈", "", "a dog\\", "plain"]

MakeDataset = Callable[..., Path]


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """What makes a latent dataset of images (by default six in nested folders with equal stems),
    each with a caption, by an autoencoder of the given channels and constants.
    """

    def make(
        channels: int,
        scale: float,
        shift: float = 0.0,
        square: bool = True,
        side: int = 64,
        names: Sequence[str] = NAMES,
    ) -> Path:
        photos = tmp_path / "photos"
        for number, (name, caption) in enumerate(zip(names, CAPTIONS, strict=False)):
            file = photos / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            shape = (300, 200) if number % 2 else (200, 320)
            noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(noise).resize(shape).save(file)
            file.with_suffix(".txt").write_text(caption)
        config = {
            "_class_name": "AutoencoderKL",
            "block_out_channels": [4, 4, 4, 4],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "latent_channels": channels,
            "scaling_factor": scale,
            "shift_factor": shift,
        }
        (tmp_path / "vae.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        buckets = {"area": 128 * 192, "step": 64, "max": 256}
        size: dict[str, Any] = {"size": side} if square else {"buckets": buckets}
        lk.run(
            {
                "task": "encode",
                "source": {"use": "folder", "with": {"path": str(photos)}},
                "modality": {"use": "image", "with": {**size, "views": ["plain", "hflip"]}},
                "encoder": {"use": "diffusers", "with": {"model": str(make_model(tmp_path))}},
                "output": {"path": str(tmp_path / "latents")},
                "batch_size": 2,
                "preview": 0,
            }
        )
        return tmp_path / "latents"

    def make_model(folder: Path) -> Path:
        from diffusers import AutoencoderKL

        values = json.loads((folder / "vae.json").read_text())
        model = AutoencoderKL.from_config(values)
        model.save_pretrained(folder / "vae")
        return folder / "vae"

    return make

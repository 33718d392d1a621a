"""Latent datasets that the tasks of latentkit/uses are tried on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import latentkit as lk

MakeLatents = Callable[..., Path]


@pytest.fixture(scope="session")
def make_latents(
    write_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> MakeLatents:
    """What encodes photos first to last by tiny-kl, and `num_noisy` of noise, with the attributes
    `label` (even, odd or noise) and `name`.
    """

    def make(first: int, last: int, num_noisy: int = 0, **overrides: object) -> Path:
        folder = tmp_path_factory.mktemp("uses")
        photos = write_photos(folder / "photos", last)
        labels = {f"{n:03d}.png": ["even", "odd"][n % 2] for n in range(last)}
        for name in list(labels)[:first]:
            del labels[name]
            (photos / name).unlink()
        for number in range(num_noisy):
            noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            labels[f"z{number}.png"] = "noise"
            Image.fromarray(noise).save(photos / f"z{number}.png")
        lines = [
            json.dumps({"file_name": name, "label": label, "name": name})
            for name, label in labels.items()
        ]
        (photos / "metadata.jsonl").write_text("\n".join(lines))
        settings = {"batch_size": 4, "threads": 1, "preview": 0, **overrides}
        lk.encode(photos, folder / "latents", size=64, overrides=settings, device="cpu")
        return folder / "latents"

    return make

"""The encoder is trained, resumed, and encodes; its latents decode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import latentkit as lk
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

MODALITY = {"use": "series", "with": {"length": 32, "full_scale": 2.0}}


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder of six series of two channels, 48 values long."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    time = np.arange(48)[:, None]
    for number in range(6):
        series = np.sin(time * (number + 1) / 20 + np.array([0, 1]))
        np.save(folder / f"{number}.npy", series.astype(np.float32))
    return folder


def train(recordings: Path, output: Path, steps: int) -> dict[str, torch.Tensor]:
    """Return the weights after so many steps in all."""
    source = {"use": "folder", "with": {"path": str(recordings), "suffixes": [".npy"]}}
    recipe: dict[str, Any] = {
        "task": "train",
        "source": source,
        "modality": {"use": "series", "with": {**MODALITY["with"], "crop": "random"}},  # type: ignore[dict-item]
        "model": {"use": "series-kl", "with": {"channels": 2, "width": 8}},
        "losses": [{"use": "mse"}, {"use": "kl", "weight": 1e-6}],
        "optimizer": {"lr": 1e-3},
        "steps": steps,
        "batch_size": 2,
        "evaluate": {"every": 1, "source": source, "metrics": [{"use": "psnr"}]},
        "output": {"path": str(output)},
    }
    lk.run(recipe)
    return load_file(output / "model" / "model.safetensors")


def test_a_resumed_run_ends_where_an_unbroken_one_does(recordings: Path, tmp_path: Path) -> None:
    first = train(recordings, tmp_path / "resumed", 1)
    resumed = train(recordings, tmp_path / "resumed", 2)
    unbroken = train(recordings, tmp_path / "unbroken", 2)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert not all(torch.equal(first[name], unbroken[name]) for name in unbroken)


def test_a_trained_model_encodes_and_decodes(recordings: Path, tmp_path: Path) -> None:
    train(recordings, tmp_path / "run", 2)
    options = {
        "encoder.with.model": str(tmp_path / "run" / "model"),
        "modality.with": MODALITY["with"],
        "output.dtype": "float32",
    }
    output = tmp_path / "latents"
    data = lk.encode(recordings, output, encoder="series-kl", overrides=options)
    assert (tmp_path / "latents" / "preview.png").is_file()
    assert data[0]["latent"].shape == (4, 4)
    assert data.decode(torch.stack([row["latent"] for row in data])).shape == (6, 2, 32)
    spread = torch.cat([row["latent"] for row in data], 1).std(1)
    assert torch.all((spread > 0.2) & (spread < 5))  # normalized by what training measured

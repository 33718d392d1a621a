"""Whole runs through latentkit: volumes train a model, which encodes them, and latents become
volumes again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import latentkit as lk
from latentkit.cli.main import main
from latentkit.store.dataset_json import read_index

MakeFile = Callable[..., bytes]
SOURCE = {"use": "folder", "with": {"path": "volumes", "suffixes": [".nii", ".nii.gz"]}}
MODEL = {"use": "volume-kl", "with": {"init": "random", "widths": [4, 6], "blocks": [1, 1]}}


@pytest.fixture(scope="module")
def work(
    tmp_path_factory: pytest.TempPathFactory, nifti: MakeFile, smooth: Callable[..., Any]
) -> Path:
    """A folder with four volumes, one of them cut off, all stored differently."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "volumes" / "more").mkdir(parents=True)
    files = {
        "a.nii": nifti(smooth((24, 20, 10)), np.diag([1.0, 1.0, 2.0, 1.0])),
        "b.nii.gz": nifti(smooth((20, 24, 16), 1), np.diag([-1.0, -1.0, 1.5, 1.0]), zipped=True),
        "more/c.nii.gz": nifti(smooth((18, 18, 18), 2), zipped=True, slope=0.5, inter=10.0),
    }
    files["cut.nii.gz"] = files["b.nii.gz"][:500]
    for name, content in files.items():
        (folder / "volumes" / name).write_bytes(content)
    return folder


def run(work: Path, output: str, **recipe: Any) -> Any:
    path = work / f"{output}.yaml"
    path.write_text(
        json.dumps(
            {"source": SOURCE, **recipe, "output": {"path": output, **recipe.get("output", {})}}
        )
    )
    return lk.run(str(path))


def train(work: Path, output: str, steps: int, **recipe: Any) -> Path:
    run(
        work,
        output,
        task="train",
        model=MODEL,
        steps=steps,
        batch_size=2,
        ema={"decay": 0.5},
        optimizer={"lr": 1e-3},
        modality={"use": "volume", "with": {"size": 12, "spacing": 1.5, "crop": "random"}},
        losses=[{"use": "l1"}, {"use": "mse"}, {"use": "kl", "weight": 1e-6}],
        evaluate={
            "every": 2,
            "source": SOURCE,
            "metrics": [{"use": "psnr"}, {"use": "kl"}],
            "best": "psnr",
        },
        **recipe,
    )
    return work / output


@pytest.fixture(scope="module")
def trained(work: Path) -> Path:
    """Folder of a run of four steps."""
    return train(work, "trained", 4)


def test_training_measures_the_model_and_its_latents(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["metrics"]["psnr"] > 10) for line in lines if "metrics" in line][
        1:
    ] == [(2, True), (4, True)]
    described = json.loads((trained / "model" / "config.json").read_text())
    assert [len(described[name]) for name in ("latents_mean", "latents_std")] == [4, 4]
    assert min(described["latents_std"]) > 0


def test_each_evaluation_shows_three_slices_of_volumes_beside_their_reconstructions(
    trained: Path,
) -> None:
    for step in (0, 2, 4):
        with Image.open(trained / "evaluations" / f"{step:08d}.png") as sheet:
            cells = np.asarray(sheet.convert("L"), dtype=float)
        assert cells.shape[1] > 2 * cells.shape[0] / 3, "three rows, each of twice three slices"
        left, right = np.array_split(cells, 2, axis=1)
        assert left.std() > 10
        assert not np.array_equal(left[:, : right.shape[1]], right)


def test_a_checkpoint_becomes_a_model_with_its_weights(work: Path, trained: Path) -> None:
    assert (
        main(["checkpoint", str(trained), str(work / "second"), "--step", "2", "--weights", "raw"])
        == 0
    )
    expected, found = (
        load_file(folder / "model.safetensors")
        for folder in (trained / "checkpoints" / "step-0000002", work / "second")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


def test_a_run_stopped_and_resumed_ends_with_the_same_weights(work: Path, trained: Path) -> None:
    train(work, "resumed", 2)
    resumed = train(work, "resumed", 4)
    expected, found = (
        load_file(folder / "model" / "model.safetensors") for folder in (trained, resumed)
    )
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())


def test_volumes_are_encoded_and_decoded_by_the_trained_model(work: Path, trained: Path) -> None:
    size, views = [16, 20, 20], ["plain", "crop-1", "grid-1x1x2-1", "grid-1x1x2-2"]
    run(
        work,
        "latents",
        task="encode",
        batch_size=3,
        preview=3,
        encoder={"use": "volume-kl", "with": {"model": "trained/model"}},
        modality={
            "use": "volume",
            "with": {"size": size, "spacing": 1, "views": ["plain", "crop-1", "grid-1x1x2"]},
        },
    )
    data = lk.open(str(work / "latents"))
    assert sorted(set(data.keys)) == ["a.nii", "b.nii.gz", "more/c.nii.gz"]
    assert [data[row]["view"] for row in range(len(data))] == views * 3
    assert data[0]["latent"].shape == (4, 4, 5, 5)
    assert data.decode(torch.stack([data[0]["latent"]])).shape == (1, 1, 16, 20, 20)
    with Image.open(work / "latents" / "preview.png") as picture:
        assert (
            picture.size[0] == 2 * (20 * 5 * 3 + 8) + 4
        )  # twenty voxels of five pixels: three slices, of source and reconstruction
    rows = read_index(
        data.folder, json.loads(data.folder.read("dataset.json")), ["key", "status", "reason"]
    ).to_pylist()
    reasons = {row["reason"] for row in rows if row["key"] == "cut.nii.gz"}
    assert reasons == {
        "a damaged NIfTI file: it ends before its last voxel, or its compression is damaged"
    }

"""`evaluate:` in a train recipe: metrics in the log, grids to look at, the best checkpoint kept,
and nothing else changed by it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import latentkit as lk
from latentkit.errors import PluginError, RecipeError
from latentkit.evaluation.images import Gallery
from latentkit.tasks.train_task import write_reconstructions

MakePhotos = Callable[..., Path]


def recipe(photos: Path, output: Path, **keys: Any) -> dict[str, Any]:
    source = {"use": "folder", "with": {"path": str(photos)}}
    return {
        "task": "train",
        "source": source,
        "modality": {"use": "image", "with": {"size": 32, "crop": "random"}},
        "model": {"use": "tiny-kl"},
        "losses": [{"use": "l1"}, {"use": "kl", "weight": 1e-6}],
        "steps": 4,
        "batch_size": 2,
        "ema": {"decay": 0.9},
        "output": {"path": str(output), "checkpoint_every": 4},
        **keys,
    }


def evaluate(photos: Path, **keys: Any) -> dict[str, Any]:
    source = {"use": "folder", "with": {"path": str(photos)}}
    return {
        "every": 2,
        "source": source,
        "metrics": [{"use": "psnr"}, {"use": "kl"}],
        "best": "psnr",
        **keys,
    }


def test_metrics_grids_and_the_best_checkpoint_are_kept(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos, held_out = make_photos(6), make_photos(3, "held-out")
    lk.run(recipe(photos, tmp_path / "run", evaluate=evaluate(held_out)))
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = {line["step"]: line["metrics"] for line in lines if "metrics" in line}
    assert sorted(measured) == [0, 2, 4]
    assert all(5 < metrics["psnr"] < 60 and metrics["kl"] > 0 for metrics in measured.values())
    best = max(measured, key=lambda step: measured[step]["psnr"])
    assert f"step-{best:07d}" in {
        file.name for file in (tmp_path / "run" / "checkpoints").iterdir()
    }
    with Image.open(tmp_path / "run" / "evaluations" / "00000002.png") as grid:
        assert grid.size == (3 * 32, 3 * 32)  # three pictures: source, reconstruction, difference


def test_evaluating_changes_nothing_that_is_trained(
    make_photos: MakePhotos, tmp_path: Path
) -> None:
    photos = make_photos(6)
    lk.run(recipe(photos, tmp_path / "plain"))
    lk.run(recipe(photos, tmp_path / "evaluated", evaluate=evaluate(photos)))
    plain, evaluated = (
        next((tmp_path / name / "model").glob("*.safetensors")) for name in ("plain", "evaluated")
    )
    theirs, ours = load_file(plain), load_file(evaluated)
    assert theirs.keys() == ours.keys()
    assert all(bool((ours[name] == theirs[name]).all()) for name in ours)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"best": "ssim"}, "evaluate.best: expected a metric with a better direction, here psnr"),
        ({"metrics": [{"use": "psnrr"}]}, "psnrr"),
        ({"source": {"use": "nowhere"}}, "nowhere"),
    ],
)
def test_what_can_not_be_measured_is_said_before_the_first_step(
    make_photos: MakePhotos, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    photos = make_photos(4)
    with pytest.raises((RecipeError, PluginError), match=message):
        lk.run(recipe(photos, tmp_path / "run", evaluate=evaluate(photos, **change)))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_modality_that_makes_no_folder_draws_into_the_evaluations(tmp_path: Path) -> None:
    class Plain:
        preview_suffix = ".txt"

        def render(self, tensors: Any, path: Path) -> None:
            path.write_text(f"{len(tensors)} rows")

    gallery = Gallery(2, (-1.0, 1.0), 2, keep_tensors=True)
    row: Any = SimpleNamespace(position=0, key="a", view="plain")
    gallery.add([row], torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))
    write_reconstructions(gallery, Plain(), tmp_path / "evaluations" / "00000000")  # type: ignore[arg-type]
    assert (tmp_path / "evaluations" / "00000000.txt").read_text() == "1 rows"

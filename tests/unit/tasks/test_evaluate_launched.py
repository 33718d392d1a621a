"""Evaluating under a launch of several processes: the first one does it, the others nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentkit
from latentkit.cli.closing_words import report_evaluation


@pytest.fixture
def recipe(make_photos: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    return {
        "task": "evaluate",
        "source": {"use": "folder", "with": {"path": str(make_photos(3))}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "tiny-kl"},
        "metrics": [{"use": "psnr"}],
        "output": {"path": str(tmp_path / "evaluation")},
    }


def test_other_processes_than_the_first_do_nothing(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    found = latentkit.run(recipe)
    assert found.evaluation is None
    assert report_evaluation(found).endswith("evaluated by the first process")
    assert not (tmp_path / "evaluation").exists()


def test_the_first_process_evaluates_everything(
    recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    found = latentkit.run(recipe)
    assert found.evaluation.num_samples == 3
    written = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert written["metrics"]["psnr"]["value"] == found.evaluation.values()["psnr"]

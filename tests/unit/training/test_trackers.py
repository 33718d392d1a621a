"""Accelerate's trackers: what they are given, and what is said where one isn't installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import mse
from latentkit.training.settings import (
    OptimizerSettings,
    TrainEvaluation,
    TrainSettings,
    WeightedLoss,
)

SETTINGS = TrainSettings(
    steps=4,
    batch_size=2,
    optimizer=OptimizerSettings(lr=1e-3),
    checkpoint_every=2,
    log_every=1,
    trackers=("tensorboard",),
)


class StoppedError(Exception):
    """Stands for anything that ends a process."""


def read_events(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of every scalar of that name."""
    (run,) = (path for path in (folder / "trackers").iterdir() if path.is_dir())
    accumulator = EventAccumulator(str(run), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def lines(log: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [line for line in log if kind in line]


def test_tensorboard_gets_what_the_log_gets(small: Any, tmp_path: Path) -> None:
    evaluation = TrainEvaluation(2, lambda module, step: {"psnr": 10.0 + step})
    small.train([WeightedLoss("mse", mse)], SETTINGS, tmp_path, evaluation)
    log = small.log(tmp_path)
    expected = [
        (line["step"], pytest.approx(line["losses"]["mse"]["value"])) for line in lines(log, "loss")
    ]
    assert read_events(tmp_path, "losses.mse.value") == expected
    assert read_events(tmp_path, "metrics.psnr") == [(0, 10.0), (2, 12.0), (4, 14.0)]


def test_a_resumed_run_shows_each_step_once(small: Any, tmp_path: Path) -> None:
    def stopping(batch: LossBatch) -> Tensor:
        if batch.step == 3:
            raise StoppedError
        return mse(batch)

    with pytest.raises(StoppedError):
        small.train([WeightedLoss("mse", stopping)], SETTINGS, tmp_path)
    assert [step for step, _ in read_events(tmp_path, "loss")] == [1, 2, 3]
    small.train([WeightedLoss("mse", mse)], replace(SETTINGS, steps=6), tmp_path)
    assert [step for step, _ in read_events(tmp_path, "loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", r'"latentkit-diffusion\[tensorboard\]"'), ("wandb", "wandb"), ("trackio", "trackio")],
)
def test_a_tracker_that_isnt_installed_is_refused_before_the_first_step(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    monkeypatch.setattr("latentkit.training.start.get_available_trackers", lambda: [])
    with pytest.raises(
        TrainingError,
        match=f"log: the tracker '{name}' isn't installed; pip install {package}, or leave it out",
    ):
        small.train([WeightedLoss("mse", mse)], replace(SETTINGS, trackers=(name,)), tmp_path)
    assert not (tmp_path / "trackers").exists()

"""What a training run keeps when something ends it: every whole step, by a checkpoint."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_training import Normalized
from torch import Tensor, nn

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.reconstruction import mse
from latentkit.training.checkpoint import list_checkpoints
from latentkit.training.result import finished_steps
from latentkit.training.settings import (
    OptimizerSettings,
    TrainEvaluation,
    TrainSettings,
    WeightedLoss,
)

SETTINGS = TrainSettings(
    steps=6,
    batch_size=2,
    accumulate=2,
    optimizer=OptimizerSettings(lr=1e-3),
    ema_decay=0.9,
    checkpoint_every=100,
    log_every=4,
)


class Saved:
    """A `Trainable` that writes its weights."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.module: nn.Module = Normalized(noise=1.0)

    def last_layer(self) -> nn.Parameter:
        return self.module.get_parameter("decoder.weight")

    def save(self, folder: Path) -> None:
        torch.save(self.module.state_dict(), folder / "weights.pt")


def failing(error: BaseException, step: int) -> WeightedLoss:
    """A loss that fails in the second of a step's two passes."""
    passes = itertools.count()

    def loss(batch: LossBatch) -> Tensor:
        if batch.step == step and next(passes) == 1:
            raise error
        return mse(batch)

    return WeightedLoss("mse", loss)


MSE = WeightedLoss("mse", mse)


def kept(folder: Path) -> list[int]:
    return [
        int(path.name.removeprefix("step-")) for path in list_checkpoints(folder / "checkpoints")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every byte of the last checkpoint, by file."""
    return {
        file.name: file.read_bytes()
        for file in list_checkpoints(folder / "checkpoints")[-1].iterdir()
    }


def lines(small: Any, folder: Path) -> list[dict[str, Any]]:
    """The log, but for its times."""
    return [
        {name: value for name, value in line.items() if name != "samples_per_second"}
        for line in small.log(folder)
    ]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RuntimeError("a bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), TrainingError),
    ],
)
def test_an_error_in_half_a_step_loses_no_whole_one_and_leaves_no_trace(
    small: Any,
    tmp_path: Path,
    error: BaseException,
    raised: type[BaseException],
    capfd: pytest.CaptureFixture[str],
) -> None:
    small.train([MSE], SETTINGS, tmp_path / "straight", model=Saved())
    with pytest.raises(raised):
        small.train([failing(error, 3)], SETTINGS, tmp_path / "failed", model=Saved())
    assert kept(tmp_path / "failed") == [3]
    assert "step 3 is saved" in capfd.readouterr().err
    small.train([MSE], SETTINGS, tmp_path / "failed", model=Saved())
    assert contents(tmp_path / "failed") == contents(tmp_path / "straight")
    # The line of step 4 averages three steps of the first start and one of the second.
    assert lines(small, tmp_path / "failed") == lines(small, tmp_path / "straight")


def test_weights_that_an_error_left_between_two_steps_are_not_saved(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real, calls = torch.optim.AdamW.step, itertools.count()

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        real(self, *arguments)
        if next(calls) == 3:
            raise RuntimeError("while weights change")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(RuntimeError, match="while weights change"):
        small.train([MSE], replace(SETTINGS, checkpoint_every=2), tmp_path)
    assert kept(tmp_path) == [2]
    assert (
        "the steps since step 2 are lost: some weights are of the next step"
        in capfd.readouterr().err
    )


def test_a_checkpoint_that_can_not_be_written_does_not_hide_the_error(
    small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ZeroDivisionError, match="the first"):
        small.train([failing(ZeroDivisionError("the first"), 3)], SETTINGS, tmp_path)
    assert "the steps since the start are lost" in capfd.readouterr().err


def test_a_log_that_can_not_be_written_loses_no_step(small: Any, tmp_path: Path) -> None:
    def hindering(batch: LossBatch) -> Tensor:
        if batch.step == 3:
            (tmp_path / "log.jsonl").mkdir(exist_ok=True)  # no line has been written yet
        return mse(batch)

    with pytest.raises(TrainingError, match=r"log\.jsonl can't be written"):
        small.train([WeightedLoss("mse", hindering)], SETTINGS, tmp_path)
    assert kept(tmp_path) == [4]


# ---------------------------------------------------------------- evaluations


def evaluation(
    values: dict[int, float], act: Callable[[int], object] = lambda step: None
) -> TrainEvaluation:
    """One every two steps whose values are given; `act` is called with the step first."""

    def measure(module: nn.Module, step: int) -> dict[str, float]:
        act(step)
        return {"psnr": values[step]}

    return TrainEvaluation(2, measure, "psnr")


VALUES = {0: 3.0, 2: 5.0, 4: 4.0, 6: 1.0}


def test_an_evaluation_that_fails_comes_after_its_checkpoint_and_is_repeated(
    small: Any, tmp_path: Path
) -> None:
    def fail(step: int) -> None:
        if step == 4:
            raise ZeroDivisionError(f"at step {kept(tmp_path / 'failed')[-1]}")

    small.train([MSE], SETTINGS, tmp_path / "straight", evaluation(VALUES), model=Saved())
    with pytest.raises(ZeroDivisionError, match="at step 4"):
        small.train([MSE], SETTINGS, tmp_path / "failed", evaluation(VALUES, fail), model=Saved())
    small.train([MSE], SETTINGS, tmp_path / "failed", evaluation(VALUES), model=Saved())
    assert contents(tmp_path / "failed") == contents(tmp_path / "straight")
    assert lines(small, tmp_path / "failed") == lines(small, tmp_path / "straight")
    assert kept(tmp_path / "failed") == kept(tmp_path / "straight") == [2, 4, 6]
    assert {file.suffix for file in (tmp_path / "failed" / "checkpoints").iterdir()} == {""}


def test_an_evaluation_that_can_not_work_is_found_before_the_first_step(
    small: Any, tmp_path: Path
) -> None:
    steps: list[int] = []

    def watched(batch: LossBatch) -> Tensor:
        steps.append(batch.step)
        return mse(batch)

    def fail(step: int) -> None:
        raise ValueError("pictures are too small")

    with pytest.raises(ValueError, match="pictures are too small"):
        small.train([WeightedLoss("mse", watched)], SETTINGS, tmp_path, evaluation(VALUES, fail))
    assert (steps, kept(tmp_path)) == ([], [])


def test_the_model_is_of_the_best_step_and_the_last_one_lies_beside_it(
    small: Any, tmp_path: Path
) -> None:
    model = Saved()
    result = small.train([MSE], SETTINGS, tmp_path, evaluation(VALUES), model=model)
    for name, step in (("model", 2), ("model-last", 6)):
        expected = load_file(tmp_path / "checkpoints" / f"step-{step:07d}" / "average.safetensors")
        found = torch.load(tmp_path / name / "weights.pt", weights_only=True)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name
    assert torch.equal(
        model.last_layer(),
        torch.load(tmp_path / "model" / "weights.pt", weights_only=True)["decoder.weight"],
    )
    written = json.loads((tmp_path / "result.json").read_text())
    assert {
        name: (found["step"], found["metrics"]) for name, found in written["models"].items()
    } == {
        "model": (2, {"psnr": 5.0}),
        "model-last": (6, {"psnr": 1.0}),
    }
    assert written["before"] == {"psnr": 3.0}
    assert (result.steps, result.best.step, finished_steps(tmp_path)) == (6, 2, 6)
    (tmp_path / "model-last" / "weights.pt").unlink()
    assert finished_steps(tmp_path) == 0


def test_training_that_only_made_it_worse_says_so_and_gives_the_model_as_it_was(
    small: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small.train(
        [MSE], SETTINGS, tmp_path, evaluation({0: 9.0, 2: 1.0, 4: 2.0, 6: 3.0}), model=Saved()
    )
    found = torch.load(tmp_path / "model" / "weights.pt", weights_only=True)
    assert all(torch.equal(found[key], value) for key, value in Saved().module.state_dict().items())
    text = capfd.readouterr().err
    assert "before the first step  psnr 9" in text
    assert (
        "by psnr, no step was better than the model before training, so model/ contains that model"
        in text
    )


def test_a_longer_run_by_another_metric_looks_for_its_own_best(small: Any, tmp_path: Path) -> None:
    small.train([MSE], replace(SETTINGS, steps=4), tmp_path, evaluation(VALUES))
    other = TrainEvaluation(
        2, lambda module, step: {"lpips": float(step)}, "lpips", higher_is_better=False
    )
    assert small.train([MSE], SETTINGS, tmp_path, other).best.step == 6


def test_an_evaluation_that_is_added_later_measures_before_the_next_step(
    small: Any, tmp_path: Path
) -> None:
    small.train([MSE], replace(SETTINGS, steps=3), tmp_path)
    small.train([MSE], SETTINGS, tmp_path, evaluation({3: 1.0, 4: 2.0, 6: 3.0}))
    assert [line["step"] for line in small.log(tmp_path) if "metrics" in line] == [3, 4, 6]

"""Training that was stopped, killed, asked to stop, or shared between processes.

Run as a script, this file trains its own small model.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from launching import environment_of_cpus, launch_line
from safetensors.torch import load_file
from small_training import Noise, Numbers, small_model
from torch import Tensor

from latentkit.contracts import LossBatch
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import mse
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint
from latentkit.training.loop import TrainResult, train
from latentkit.training.settings import OptimizerSettings, TrainSettings, WeightedLoss

SETTINGS = TrainSettings(
    steps=9,
    batch_size=2,
    accumulate=2,
    precision="bf16",
    optimizer=OptimizerSettings(lr=3e-3, betas=(0.9, 0.99), schedule="cosine", warmup=3),
    ema_decay=0.9,
    checkpoint_every=2,
    log_every=1,
)


class StoppedError(Exception):
    """Stands for anything that ends a process."""


def run(
    folder: Path,
    settings: TrainSettings = SETTINGS,
    stop_after: int | None = None,
    seconds: float = 0.0,
    sleep_at: int | None = None,
) -> TrainResult:
    def reconstruction(batch: LossBatch) -> Tensor:
        if batch.step == stop_after:
            raise StoppedError
        if batch.step == sleep_at:
            print("asleep", file=sys.stderr, flush=True)
            time.sleep(1000)
        return mse(batch)

    losses = [WeightedLoss("mse", reconstruction), WeightedLoss("kl", Kl(), 1e-4, "latent")]
    seven = Numbers(7)  # so that epochs end inside steps
    noise = Noise(seconds, ("plain", "hflip"))
    return train(small_model(), seven, noise, losses, settings, folder)


def results(folder: Path) -> dict[str, bytes]:
    """Every byte of the result and the last checkpoint, by file, but for the log's times."""
    last = list_checkpoints(folder / "checkpoints")[-1]
    return {
        file.name: file.read_bytes()
        for part in (folder / "model", last)
        for file in sorted(part.iterdir())
    }


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A run that was never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    run(folder)
    return results(folder)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 4, 8])
def test_a_stopped_run_goes_on_bit_for_bit(
    tmp_path: Path, straight: dict[str, bytes], stop_after: int
) -> None:
    with pytest.raises(StoppedError):
        run(tmp_path, stop_after=stop_after)
    assert not (tmp_path / "model").exists()
    saved = [f"step-{stop_after:07d}"] if stop_after else []  # also where checkpoint_every had none
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")][-1:] == saved
    run(tmp_path)
    assert results(tmp_path) == straight
    assert [line.split(",")[0] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [
        f'{{"step": {n}' for n in range(1, 10)
    ]


def test_a_run_stopped_twice_goes_on_bit_for_bit(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    for stop_after in (3, 7):
        with pytest.raises(StoppedError):
            run(tmp_path, stop_after=stop_after)
    run(tmp_path)
    assert results(tmp_path) == straight


def test_a_killed_process_goes_on_bit_for_bit(tmp_path: Path, straight: dict[str, bytes]) -> None:
    environment = environment_of_cpus(torch.get_num_threads())
    command = [sys.executable, __file__, str(tmp_path), "0.2"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(list_checkpoints(tmp_path / "checkpoints")) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    run(tmp_path)
    assert results(tmp_path) == straight


def test_a_finished_training_that_lost_its_model_writes_the_same_again(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    run(tmp_path)
    (tmp_path / "model").rename(tmp_path / "lost")
    run(tmp_path)
    assert results(tmp_path) == straight


def test_a_model_without_all_its_files_is_written_again(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    run(tmp_path)
    (tmp_path / "model" / "diffusion_pytorch_model.safetensors").unlink()
    run(tmp_path)
    assert results(tmp_path) == straight


def test_a_longer_run_that_ends_before_its_model_is_written_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its steps are in a checkpoint, and there is a model: of the shorter run."""

    def stopping(*_: object) -> None:
        raise StoppedError

    for folder in (tmp_path / "straight", tmp_path / "stopped"):
        run(folder, replace(SETTINGS, steps=4))
    run(tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr("latentkit.training.result.measure_latents", stopping)
        run(tmp_path / "stopped")
    assert list_checkpoints(tmp_path / "stopped" / "checkpoints")[-1].name == "step-0000009"
    assert not run(tmp_path / "stopped").finished_before
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")
    assert run(tmp_path / "stopped").finished_before


def test_more_steps_go_on_from_a_finished_run_and_say_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, replace(SETTINGS, steps=4))
    result = run(
        tmp_path, replace(SETTINGS, steps=6, optimizer=replace(SETTINGS.optimizer, lr=1e-3))
    )
    assert (result.steps, result.finished_before) == (6, False)
    text = capfd.readouterr().err
    assert "continuing from step 4" in text
    assert "steps was 4 and is 6 from here on" in text
    assert "optimizer.lr was 0.003 and is 0.001 from here on" in text


def test_another_batch_size_goes_on_with_the_next_epoch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, replace(SETTINGS, steps=4))  # eight batches, three an epoch: inside epoch 2
    run(tmp_path, replace(SETTINGS, steps=6, batch_size=3))
    assert "going on with epoch 3" in capfd.readouterr().err


def test_the_number_of_threads_is_the_one_the_run_began_with(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        run(tmp_path, replace(SETTINGS, steps=2))
        torch.set_num_threads(2)
        run(tmp_path, replace(SETTINGS, steps=4))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- signals

UNSAVED = replace(SETTINGS, checkpoint_every=100)
PATIENCE = (
    180  # seconds for what takes a few: processes that wait for each other would do so for hours
)


def start(
    folder: Path, *arguments: str, seconds: float = 0.1, line: Sequence[str] = (sys.executable,)
) -> subprocess.Popen[str]:
    environment = environment_of_cpus(1 if len(line) > 1 else torch.get_num_threads())
    command = [*line, __file__, str(folder), str(seconds), "unsaved", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    printed = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0, printed


def wait_for_lines(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many steps are logged."""
    log = folder / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < count:
        assert (
            process.poll() is None
        ), f"it ended before it could be stopped: {process.communicate()}"
        time.sleep(0.01)


def newest(folder: Path) -> int:
    (path,) = list_checkpoints(folder / "checkpoints")
    return read_checkpoint(path).step


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_run_goes_on_bit_for_bit(
    tmp_path: Path, number: signal.Signals
) -> None:
    run(tmp_path / "straight", UNSAVED)
    process = start(tmp_path / "stopped")
    wait_for_lines(process, tmp_path / "stopped", 2)
    process.send_signal(number)
    printed = process.communicate(timeout=PATIENCE)[1]
    assert (
        process.returncode == -number
    ), printed  # as without us: the exit codes 143 and 130 are the command's
    assert "stopping after this step, whose state is saved first" in printed
    assert 2 <= newest(tmp_path / "stopped") < UNSAVED.steps
    run(tmp_path / "stopped", UNSAVED)
    assert results(tmp_path / "stopped") == results(tmp_path / "straight")


def test_a_second_interrupt_ends_a_long_step_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "sleeping")
    assert process.stderr is not None
    wait_for(process, "asleep")
    process.send_signal(signal.SIGINT)
    wait_for(process, "Ctrl-C again stops at once")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)  # the step would take longer
    assert process.returncode == -signal.SIGINT
    assert list_checkpoints(tmp_path / "checkpoints") == []


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"it ended without saying {text!r}")


def test_two_processes_train_one_model_and_a_signal_to_one_stops_both_after_the_same_step(
    tmp_path: Path, straight: dict[str, bytes]
) -> None:
    """The other one gets none, and neither waits for ever."""
    line = launch_line()
    finish(start(tmp_path / "whole", seconds=0, line=line))
    launch = start(tmp_path / "parts", line=line)
    wait_for_lines(launch, tmp_path / "parts", 2)
    (second,) = (
        child
        for child in psutil.Process(launch.pid).children()
        if child.environ().get("RANK") == "1"
    )
    second.send_signal(signal.SIGTERM)
    printed = launch.communicate(timeout=PATIENCE)[1]
    assert launch.returncode != 0
    assert 2 <= newest(tmp_path / "parts") < UNSAVED.steps, printed
    finish(start(tmp_path / "parts", seconds=0, line=line))
    whole, parts = results(tmp_path / "whole"), results(tmp_path / "parts")
    assert whole == parts
    assert whole["model.safetensors"] != straight["model.safetensors"]
    random = load_file(
        list_checkpoints(tmp_path / "whole" / "checkpoints")[-1] / "random.safetensors"
    )["cpu"]
    assert len(random) == 2
    assert not torch.equal(random[0], random[1]), "each process draws its own noise"


if __name__ == "__main__":
    place, seconds, *wanted = sys.argv[1:]
    chosen = UNSAVED if "unsaved" in wanted else SETTINGS
    run(Path(place), chosen, seconds=float(seconds), sleep_at=3 if "sleeping" in wanted else None)

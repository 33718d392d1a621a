"""The training command, killed at random moments and run again: the result is the one that would
have come out anyway, bit for bit.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from latentkit.training.checkpoint import list_checkpoints, step_of

RECIPE = """
task: train
source: {{use: folder, with: {{path: {photos}}}}}
modality: {{use: image, with: {{size: 48, crop: random, crop_scale: [0.5, 1.0], views: [plain, hflip]}}}}
model: {{use: tiny-kl, with: {{init: random}}}}
losses:
  - {{use: mse}}
  - {{use: kl, weight: 1e-6, schedule: {{warmup: 5}}}}
  - {{use: laplace-nll, weight: 0.1, with: {{scale: learned}}}}
  - {{use: patch-gan, weight: 0.5, adaptive: true, with: {{num_layers: 1, width: 8, lecam: 0.001}}, schedule: {{start: 4, warmup: 3}}}}
optimizer: {{lr: 1e-3, schedule: cosine, warmup: 3}}
steps: 12
batch_size: 2
accumulate: 2
ema: {{decay: 0.9}}
evaluate:
  source: {{use: folder, with: {{path: {photos}}}}}
  every: 3
  metrics: [{{use: psnr}}]
  best: psnr
output: {{path: {output}, checkpoint_every: {checkpoint_every}}}
"""
NUM_KILLS = 4


def start(recipe: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "latentkit", "run", str(recipe), *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    printed = process.communicate()[0].decode()
    assert process.returncode == 0, printed
    return printed


def wait_for_checkpoint(process: subprocess.Popen[bytes], output: Path, step: int) -> None:
    """Until there is a checkpoint of that step or a later one, or the process is at its end."""
    while process.poll() is None and not any(
        path.name >= f"step-{step:07d}" for path in list_checkpoints(output / "checkpoints")
    ):
        time.sleep(0.01)


def contents(output: Path) -> dict[str, bytes]:
    """Every byte of the result and of the last checkpoint, by file."""
    parts = (
        output / "model",
        output / "model-last",
        list_checkpoints(output / "checkpoints")[-1],
        output / "evaluations",
    )
    return {
        f"{part.name}/{file.name}": file.read_bytes()
        for part in parts
        for file in sorted(part.iterdir())
    }


def measured(output: Path) -> list[tuple[int, float]]:
    """Step and metric of each evaluation in the log."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["metrics"]["psnr"]) for line in lines if "metrics" in line]


@pytest.fixture
def write_recipe(make_photos: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A recipe whose output is a folder of that name."""
    photos = make_photos(7)

    def write(name: str, checkpoint_every: int = 1) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            RECIPE.format(photos=photos, output=tmp_path / name, checkpoint_every=checkpoint_every)
        )
        return path

    return write


def test_training_killed_at_random_moments_ends_bit_identical(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    finish(start(write_recipe("straight")))
    recipe, output = write_recipe("killed"), tmp_path / "killed"
    draw = random.Random(1)
    for kill in range(NUM_KILLS):
        process = start(recipe)
        wait_for_checkpoint(process, output, 1 + 3 * kill)
        time.sleep(draw.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    printed = finish(start(recipe))
    assert "continuing from step" in printed
    assert contents(output) == contents(tmp_path / "straight")
    assert measured(output) == measured(tmp_path / "straight")
    assert [step for step, _ in measured(output)] == [0, 3, 6, 9, 12]
    assert {file.suffix for file in output.rglob("*") if file.is_file()} <= {
        ".safetensors",
        ".json",
        ".jsonl",
        ".yaml",
        ".png",
    }
    best = max(measured(output), key=lambda found: found[1])[0]
    assert [step_of(path) for path in list_checkpoints(output / "checkpoints")] == sorted(
        {best, 11, 12}
    )


def test_a_training_stopped_by_signals_loses_no_step_and_ends_bit_identical(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    finish(start(write_recipe("straight", checkpoint_every=1000)))
    recipe, output = write_recipe("stopped", checkpoint_every=1000), tmp_path / "stopped"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(recipe)
        printed = read_until(process, "kl: ")  # which is said after the first step
        process.send_signal(number)
        printed += process.communicate()[0].decode()
        assert process.returncode == code, printed
        assert (
            f"what is committed is kept; go on with: latentkit run {output}/recipe.yaml" in printed
        )
        assert ("continuing from step" in printed) == (number == signal.SIGINT)
    assert "continuing from step" in finish(start(output / "recipe.yaml"))
    assert contents(output) == contents(tmp_path / "straight")


def read_until(process: subprocess.Popen[bytes], text: str) -> str:
    """What a process printed up to a line with a text."""
    printed = ""
    assert process.stdout is not None
    for line in process.stdout:
        printed += line.decode()
        if text in printed:
            break
    return printed


def test_a_second_run_on_one_output_is_refused_until_the_first_is_dead(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = write_recipe("shared")
    first = start(recipe, "--set", "steps=1000000")
    wait_for_checkpoint(first, tmp_path / "shared", 1)
    second = start(recipe)
    printed = second.communicate()[0].decode()
    assert second.returncode == 2, printed
    assert re.search(
        rf"shared: another run writes here \(process {first.pid} on \S+, begun at \d{{4}}-",
        printed,
    )
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert "continuing from step" in finish(start(recipe, "--set", "steps=5"))
    assert not (tmp_path / "shared" / "claims").exists()

"""Real processes, really killed: the dataset that comes out is the one that would have come out anyway, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from latentkit.store.folder import LocalFolder
from latentkit.store.index import committed

NUM_PHOTOS = 40
OPTIONS = ["batch_size=2", "threads=1", "output.unit_size=2", "preview=0", "modality.with.size=128", "output.dtype=float32"]


def command(photos: Path, output: Path, encoder: Path, processes: int) -> list[str]:
    """`encode` in one process, or the same recipe under `accelerate launch`."""
    plain = ["latentkit", "encode", str(photos), str(output), "--encoder", str(encoder)]
    sets = [part for option in OPTIONS for part in ("--set", option)]
    if processes == 1:
        return [sys.executable, "-m", *plain, *sets]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes", str(processes), "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [sys.executable, "-m", *launch, "-m", *plain, *sets]


def contents(output: Path) -> dict[str, bytes]:
    """All files that have to be the same; claims are never compared."""
    files = [output / "dataset.json", *(file for part in ("plans", "units", "index") for file in sorted((output / part).iterdir()))]
    return {str(file.relative_to(output)): file.read_bytes() for file in files}


@pytest.fixture
def start() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    """Start a command in a process group of its own, which is killed at the latest when the test ends."""
    begun: list[subprocess.Popen[str]] = []

    def begin(line: list[str]) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            line, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        stop(process, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.close()


def stop(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Signal the whole group: launcher and workers."""
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.wait()


def wait_for_units(output: Path, process: subprocess.Popen[str], number: int) -> None:
    """Until so many units are committed, or the process is at its end."""
    while process.poll() is None and len(committed(LocalFolder(output))) < number:
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> str:
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    return printed


Start = Callable[[list[str]], "subprocess.Popen[str]"]


def test_killed_and_resumed_on_other_numbers_of_processes_ends_bit_identical(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path, start: Start
) -> None:
    photos = make_photos(NUM_PHOTOS)
    finish(start(command(photos, tmp_path / "whole", kl_folder, 1)))
    expected = contents(tmp_path / "whole")
    finish(start(command(photos, tmp_path / "two", kl_folder, 2)))
    assert contents(tmp_path / "two") == expected
    output = tmp_path / "killed"
    draw = random.Random(0)
    for processes, units in ((1, 3), (2, 9)):
        process = start(command(photos, output, kl_folder, processes))
        wait_for_units(output, process, units)
        time.sleep(draw.random() * 0.1)
        stop(process, signal.SIGKILL)
    assert 3 <= len(committed(LocalFolder(output))) < NUM_PHOTOS // 2
    finish(start(command(photos, output, kl_folder, 2)))
    assert contents(output) == expected
    assert not list((output / "claims").iterdir())


def test_terminated_run_says_how_to_go_on_and_exits_143(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path, start: Start
) -> None:
    photos, output = make_photos(NUM_PHOTOS), tmp_path / "out"
    process = start(command(photos, output, kl_folder, 1))
    wait_for_units(output, process, 2)
    os.kill(process.pid, signal.SIGTERM)
    printed = process.communicate()[0]
    assert process.returncode == 143, printed
    assert f"go on with: latentkit run {output}/recipe.yaml" in printed
    assert not list((output / "claims").iterdir())
    process = start([sys.executable, "-m", "latentkit", "run", f"{output}/recipe.yaml"])
    wait_for_units(output, process, len(committed(LocalFolder(output))) + 1)
    os.kill(process.pid, signal.SIGINT)
    printed = process.communicate()[0]
    assert process.returncode == 130, printed
    finish(start([sys.executable, "-m", "latentkit", "run", f"{output}/recipe.yaml"]))

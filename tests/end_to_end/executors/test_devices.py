"""One run on several devices of a machine: a process each, one result.

Here each device is the CPU.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from latentkit import builtin
from latentkit.contracts import BuildContext, Executor, ExecutorSpec, PluginSpec
from latentkit.executors.local import LocalExecutor
from latentkit.executors.options import LocalConfig
from latentkit.store.local_folder import LocalFolder
from latentkit.testing import ExecutorContract
from latentkit.testing.executor import UNITS, MakeWorker
from latentkit.upkeep.verify import verify_folder


class TestSeveralDevices(ExecutorContract):
    """What an executor promises holds with processes of its own too."""

    spec: PluginSpec = ExecutorSpec(
        "several",
        "three devices of this machine",
        LocalConfig,
        lambda config, context: LocalExecutor("cpu", "cpu", "cpu:0"),
    )

    def make_executor(self, tmp_path: Path) -> Executor:
        return LocalExecutor("cpu", "cpu", "cpu:0")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_photos(tmp_path_factory.mktemp("photos"), 24)


def draw_photos(folder: Path, count: int) -> Path:
    for number in range(count):
        Image.linear_gradient("L").rotate(number * 15).resize((32, 32)).convert("RGB").save(
            folder / f"{number:03d}.png"
        )
    return folder


def command(photos: Path, output: Path, *more: str) -> list[str]:
    sizes = [
        "--size",
        "32",
        "--set",
        "batch_size=2",
        "--set",
        "output.unit_size=2",
        "--set",
        "threads=1",
        "--set",
        "preview=0",
    ]
    return [sys.executable, "-m", "latentkit", "encode", str(photos), str(output), *sizes, *more]


def content(folder: Path) -> dict[str, bytes]:
    kept = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "claims"
    ]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in kept
        if path.name != "recipe.yaml"
    }


def wait_for(happened: Callable[[], object], seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.02)


def test_three_devices_make_what_one_makes(photos: Path, tmp_path: Path) -> None:
    subprocess.run(
        command(photos, tmp_path / "one", "--device", "cpu"), check=True, capture_output=True
    )
    done = subprocess.run(
        command(photos, tmp_path / "three", "--devices", "cpu,cpu,cpu"),
        check=True,
        capture_output=True,
        text=True,
    )
    assert content(tmp_path / "three") == content(tmp_path / "one")
    assert "24 latents in" in done.stdout  # those of all processes
    assert not list((tmp_path / "three" / "claims").iterdir())
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes_and_the_run_goes_on_later(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, stop: signal.Signals
) -> None:
    photos = draw_photos(tmp_path_factory.mktemp("many"), 240)  # the signal comes before the end
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(photos, output, "--devices", "cpu,cpu"), text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: len(list(output.glob("units/*.safetensors"))) > 0)
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 1
    process.send_signal(stop)  # to it alone: it tells the others
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + stop
    assert "go on with: latentkit run" in errors
    assert not any(worker.is_running() for worker in workers)
    assert not list(output.glob("claims/*"))
    subprocess.run(
        [sys.executable, "-m", "latentkit", "run", str(output / "recipe.yaml")],
        check=True,
        capture_output=True,
    )
    assert not verify_folder(LocalFolder(output)).report().damage


def test_a_killed_worker_costs_only_its_units_in_flight(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(photos, output, "--devices", "cpu,cpu"),
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: psutil.Process(process.pid).children())
    psutil.Process(process.pid).children()[0].kill()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert (
        "the process for cpu ended with exit code -9; the other processes encode its unfinished units"
        in errors
    )
    assert not verify_folder(LocalFolder(output)).report().damage


def test_devices_under_a_launcher_or_for_training_are_refused(photos: Path, tmp_path: Path) -> None:
    launched = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    done = subprocess.run(
        command(photos, tmp_path / "out", "--devices", "0,1"),
        env=launched,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert (
        "--devices 0,1: a launcher gives each process its device"
        in done.stderr
    )


def test_a_recipe_names_devices_too() -> None:
    local = next(spec for spec in builtin.latentkit_executors() if spec.name == "local")
    executor = local.build(LocalConfig(devices=["cpu", "cpu:0"]), BuildContext())
    assert (executor.device, executor.others) == ("cpu", ("cpu",))
    with pytest.raises(ValueError, match="give device or devices, and at least one"):
        LocalConfig(device="cpu", devices=["cpu"])


class Unreadable(MakeWorker):
    """Can be sent to another process, and not be read there, as a plugin that only this process
    has.
    """

    def __reduce__(self) -> Any:
        return exec, ("raise ImportError('no module named here_only')",)


def test_a_worker_that_can_not_read_its_job_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="no module named here_only"):
        list(LocalExecutor("cpu", "cpu").run(UNITS, Unreadable(tmp_path)))

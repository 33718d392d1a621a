"""Real commands in real processes, which a test may kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from launching import launch_line

LONGEST_SECONDS = 240.0


@dataclass
class Run:
    """A command under way, and what it prints."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether the condition came true before the command was at its end."""
        while self.is_running:
            if condition():
                return True
            time.sleep(0.001)
        return False

    def workers(self) -> list[psutil.Process]:
        """The processes that the command has started."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> bool:
        """Whether it was still running; launcher and workers get no chance to do anything any more.
        """
        was_running = self.is_running
        if was_running:
            os.kill(
                self.process.pid, signal.SIGSTOP
            )  # so that it starts no more while they are counted
        family = self.workers()  # of several sessions: a launcher gives each worker its own
        for process in [self.process, *family]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family)
        self.process.wait()
        return was_running

    def interrupt(self, number: signal.Signals) -> None:
        """Send a signal to the command alone, as a scheduler does."""
        os.kill(self.process.pid, number)

    def finish(self, expected: int = 0) -> str:
        """What it printed, once it is at its end with this exit code."""
        code = self.process.wait(LONGEST_SECONDS)
        printed = self.log.read_text(errors="replace")
        assert code == expected, f"exit code {code}: {printed}"
        return printed


Start = Callable[..., Run]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start `latentkit` with some arguments, alone or several of them under a launcher; killed at
    the latest when the test ends.
    """
    begun: list[Run] = []

    def begin(
        arguments: Sequence[str | Path], processes: int = 1, prefix: Sequence[str] = ()
    ) -> Run:
        line = [*prefix, sys.executable, "-m", "latentkit", *map(str, arguments)]
        if processes > 1:
            line = [*prefix, *launch_line(processes), *line[len(prefix) + 1 :]]
        log = tmp_path / f"log-{len(begun)}.txt"
        with open(log, "wb") as file:
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        begun.append(Run(process, log))
        return begun[-1]

    yield begin
    for run in begun:
        run.kill()


def read_contents(output: Path) -> dict[str, bytes]:
    """All files that have to be the same however a dataset came about; what is missing is left out.
    """
    folders = [output / part for part in ("plans", "units", "index") if (output / part).is_dir()]
    files = [
        *(file for folder in folders for file in sorted(folder.iterdir())),
        output / "dataset.json",
    ]
    return {str(file.relative_to(output)): file.read_bytes() for file in files if file.exists()}


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    return read_contents


@pytest.fixture(scope="session")
def encode_line() -> Callable[..., list[str]]:
    """Arguments of an `encode` that makes many small units."""
    options = [
        "batch_size=2",
        "threads=1",
        "output.unit_size=2",
        "preview=0",
        "output.dtype=float32",
    ]

    def line(photos: Path, output: Path, encoder: Path, size: int = 64) -> list[str]:
        sets = [part for option in options for part in ("--set", option)]
        return [
            "encode",
            str(photos),
            str(output),
            "--encoder",
            str(encoder),
            "--size",
            str(size),
            *sets,
        ]

    return line

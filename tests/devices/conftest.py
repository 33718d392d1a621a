"""Code on the simulated device, in processes of its own: other tests go without the device."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import pytest

SIM = Path(__file__).with_name("sim")
HERE = Path(__file__)


def sim_environment(options: str) -> dict[str, str]:
    """The environment of a process in which torch has the simulated device."""
    paths = [str(SIM), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "LATENTKIT_SIM": options}


RunOnSim = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run_on_sim() -> RunOnSim:
    """Run Python code in a process with the simulated device; warnings are errors."""

    def run(code: str, options: str = "1") -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-X", "dev", "-W", "error", "-c", code]
        return subprocess.run(line, env=sim_environment(options), capture_output=True, text=True)

    return run


class Worker:
    """A process with the simulated device that calls functions of test modules by name."""

    def __init__(self, options: str) -> None:
        ours, theirs = Pipe()
        line = [sys.executable, "-W", "error", str(HERE), str(theirs.fileno())]
        self._process = subprocess.Popen(
            line, env=sim_environment(options), pass_fds=[theirs.fileno()]
        )
        self._connection = ours
        theirs.close()

    def call(self, file: str, name: str) -> str | None:
        """Call a function of a file; return the traceback, or None when it came back."""
        self._connection.send((file, name))
        text: str | None = self._connection.recv()
        return text

    def close(self) -> None:
        """End the process."""
        self._connection.send(None)
        self._process.wait()


@pytest.fixture(scope="session")
def sim_worker() -> Iterator[Callable[[str], Worker]]:
    """The worker with the given options; each is started once."""
    workers: dict[str, Worker] = {}

    def get(options: str) -> Worker:
        if options not in workers:
            workers[options] = Worker(options)
        return workers[options]

    yield get
    for worker in workers.values():
        worker.close()


def _serve(connection: Connection) -> None:
    import traceback

    import torch

    while (task := connection.recv()) is not None:
        file, name = task
        try:
            spec = importlib.util.spec_from_file_location("on_sim", file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            torch.sim.violations()  # type: ignore[attr-defined]
            getattr(module, name).on_sim()
            left = torch.sim.violations()  # type: ignore[attr-defined]
            connection.send(f"mistakes that the test didn't ask for: {left}" if left else None)
        except BaseException:  # noqa: BLE001 whatever it is, the test's process reports it
            connection.send(traceback.format_exc())


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))

"""Scripts in several processes of one launch, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def launch_line(num_processes: int = 2) -> list[str]:
    """Return the command that starts what follows in so many processes.

    On CPUs, accelerate's own launcher starts one process, whatever it is told.
    """
    processes = f"--nproc-per-node={num_processes}"
    return [sys.executable, "-m", "torch.distributed.run", processes, "--standalone"]


def environment_of_cpus(num_threads: int = 1) -> Mapping[str, str]:
    """Return the variables of processes that compute on CPUs, and may import what these tests do.
    """
    return os.environ | {
        "OMP_NUM_THREADS": str(num_threads),
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
        ),
    }


def launch(
    *line: str | Path, num_processes: int = 2, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script, or `-m` and a module, with its arguments, in some processes.

    Processes that take longer than `seconds` wait for each other, and are ended.
    """
    whole = [*launch_line(num_processes), *map(str, line)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        whole, env=environment_of_cpus(), stdout=pipe, stderr=pipe, text=True
    ) as launched:
        try:
            output, errors = launched.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            launched.terminate()  # the launcher then ends all, and its exit status says so
            output, errors = launched.communicate()
    return subprocess.CompletedProcess(whole, launched.returncode, output, errors)

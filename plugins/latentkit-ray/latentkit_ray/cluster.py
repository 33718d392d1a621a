"""Connects to a Ray cluster, and computes how many workers fit."""

from __future__ import annotations

import functools
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import ray._private.worker

from latentkit.errors import RecipeError
from latentkit_ray.plugin import RayConfig

CONNECT_SECONDS = 10.0

Resources = Mapping[str, float]
"""What one node has, by name, such as {"CPU": 8.0, "GPU": 1.0}."""


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs of a node that one worker takes."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    @property
    def device(self) -> str:
        """Return the device in a worker's process, where Ray shows only the worker's GPU."""
        return "auto" if self.gpus else "cpu"

    def num_fitting(self, nodes: Sequence[Resources]) -> int:
        """Return the number of workers that would fit on the nodes if they were idle."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        # A tenth must fit ten times into one, despite rounding.
        return sum(
            min(int(node.get(name, 0) / part + 1e-6) for name, part in wanted.items() if part)
            for node in nodes
        )


@contextmanager
def connect_to_cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster inside the block. An existing connection is used and kept.

    Raises:
        RecipeError: the cluster can't be reached.
    """
    if ray.is_initialized():
        yield
        return
    # In the main thread Ray would replace our signal handler. What Ray starts here ends with the
    # thread that started it, so the thread is kept.
    with ThreadPoolExecutor(1, "ray") as thread:
        try:
            _connect(address, thread)
            yield
        finally:
            thread.submit(ray.shutdown).result()


def _connect(address: str | None, thread: Executor) -> None:
    named = address or os.environ.get("RAY_ADDRESS")
    logging.getLogger("ray").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Dumps of lost nodes would go to stdout, thirty lines each; no option turns them off, and the
    # worker_pool says what was lost.
    ray._private.worker._worker_logs_enabled = False
    try:
        # By default Ray tries for minutes to reach a missing cluster, and then ends the process.
        if named and (match := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", named)):
            socket.create_connection((match[1], int(match[2])), CONNECT_SECONDS).close()
        init = functools.partial(
            ray.init, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False
        )
        thread.submit(init, address).result()
        _restore_sigterm()
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at {named}" if named else "on this machine, and none could be started"
        advice = "give executor.with.address the one that `ray start --head` prints"
        raise RecipeError(
            f"executor.with.address: no Ray cluster can be reached {where}: {error}; {advice}"
        ) from error


def _restore_sigterm() -> None:
    """Make SIGTERM call the program's own handler again.

    Ray's library installs a handler that prints a trace, calls the program's, and aborts the
    process three seconds later.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGTERM, handler)


def list_nodes() -> list[Resources]:
    """Return the resources of each living node, used or not."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def share_of(config: RayConfig, nodes: Sequence[Resources]) -> Share:
    """Return what one worker takes, from the config and the nodes' resources."""
    gpus, cpus = config.gpus_per_worker, config.cpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU") for node in nodes) else 0.0
    if cpus is None:
        cpus = 1.0 if gpus else min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    return Share(cpus, gpus)


def check_that_worker_fits(share: Share, nodes: Sequence[Resources]) -> None:
    """Check that at least one worker fits on a node.

    Raises:
        RecipeError: no worker fits.
    """
    if share.num_fitting(nodes):
        return
    there = (
        "; ".join(str(Share(node.get("CPU", 0), node.get("GPU", 0))) for node in nodes[:8])
        or "none"
    )
    raise RecipeError(
        f"executor.with: a worker needs {share}, and no living node of the Ray cluster has as much"
        f" (nodes: {there}); lower gpus_per_worker or cpus_per_worker, or add a node and run again"
    )

"""The number of cores that this process may use, for threads that decode and prepare."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUOTA_FILES = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""A container's quota files: its own control group is mounted as the root (version 2, version
1).
"""


def num_cores() -> int:
    """Return the number of cores that this process may use: those it is bound to, limited by its
    container's quota.

    OMP_NUM_THREADS is ignored, because launchers set it differently for one process and for two.
    """
    if sys.platform == "linux":
        bound = len(os.sched_getaffinity(0))
    else:
        bound = os.cpu_count() or 1
    return max(1, min(bound, _read_quota() or bound))


def share_of_cores() -> int:
    """Return this process's share of the cores, which a launcher's processes on one machine divide
    among themselves.
    """
    return max(1, num_cores() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def shared_cores(num_processes: int) -> Iterator[None]:
    """Restrict this process to its share of the cores, because it has started processes that use
    the others.
    """
    before = os.environ.get("LOCAL_WORLD_SIZE")
    os.environ["LOCAL_WORLD_SIZE"] = str(num_processes)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_WORLD_SIZE"]
        else:
            os.environ["LOCAL_WORLD_SIZE"] = before


def _read_quota() -> int | None:
    """Return the cores in the container's quota of processor time, rounded up; None without a
    quota.
    """
    for name in QUOTA_FILES:
        try:
            words = Path(name).read_text(encoding="ascii").split()
            period = (
                words[1]
                if len(words) > 1
                else Path(name).with_name("cpu.cfs_period_us").read_text(encoding="ascii")
            )
            quota = int(words[0])
        except (OSError, ValueError, IndexError):
            continue
        return -(-quota // int(period)) if quota > 0 else None
    return None

"""Measures how much memory this process may still use, so that what can't fit is refused before it
is tried.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from latentkit.errors import RecipeError

LIMIT_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""A container's limit and usage; its control group is mounted as the root (version 2, version
1).
"""


def available_bytes() -> int:
    """Return the bytes that can be allocated without swapping, limited by the machine and the
    container.
    """
    available: int = psutil.virtual_memory().available
    for limit_file, used_file in LIMIT_FILES:
        try:
            limit, used = (
                int(Path(name).read_text(encoding="ascii")) for name in (limit_file, used_file)
            )
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Cached files count as used but are released when memory is needed; half of them are
        # counted as available.
        available = min(available, max(limit - used, limit // 2))
    return available


def reset_peak() -> None:
    """Restart `peak_bytes` from the current use, if the system supports it (Linux 4.0 and
    later).
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the most memory that this process has used since it started or since `reset_peak`."""
    with contextlib.suppress(OSError):
        for line in (
            Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        ):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        peak: int = psutil.Process().memory_info().peak_wset
        return peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def refuse_beyond_memory(where: str, shape: Sequence[int]) -> None:
    """Refuse a float32 row of this shape if it is larger than the available memory.

    Args:
        where: the recipe key that decides the shape.

    Raises:
        RecipeError: the row doesn't fit; the message has the needed and available memory.
    """
    needed, there = 4 * math.prod(shape), available_bytes()
    if needed > there:
        values = " x ".join(map(str, shape))
        raise RecipeError(
            f"{where}: a row of {values} values in float32 takes {describe_bytes(needed)}, but"
            f" only {describe_bytes(there)} of memory are free. Reduce it"
        )


def describe_bytes(number: int) -> str:
    """Return a number of bytes for people, such as "1.5 GB"."""
    return f"{number / 1e9:.3g} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"

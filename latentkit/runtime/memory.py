"""How much memory this process may still take, so that what can't fit is refused before it is
tried.
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
"""Limit and use of a container, whose control group is mounted as the root (version 2, version 1).
"""


def available_bytes() -> int:
    """Return the bytes free without swapping, by the machine and the container's limit."""
    available: int = psutil.virtual_memory().available
    for limit_file, used_file in LIMIT_FILES:
        try:
            limit, used = (
                int(Path(name).read_text(encoding="ascii")) for name in (limit_file, used_file)
            )
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read count as used, and are let go where memory is wanted: half of them
        # stay out of the sum.
        available = min(available, max(limit - used, limit // 2))
    return available


def forget_peak() -> None:
    """Begin `peak_bytes` again from what is held now, where the system (Linux) can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the most that this process has held since it began or since `forget_peak`."""
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
    """Refuse a row, float32 of this shape, that alone is larger than the free memory.

    Args:
        where: key of the recipe that decides the shape.

    Raises:
        RecipeError: says what it takes and what there is.
    """
    needed, there = 4 * math.prod(shape), available_bytes()
    if needed > there:
        values = " x ".join(map(str, shape))
        raise RecipeError(
            f"{where}: a row of {values} values in float32 takes {describe_bytes(needed)}, and"
            f" {describe_bytes(there)} of memory are free; ask for less"
        )


def describe_bytes(number: int) -> str:
    """Return bytes as a person says them, such as "1.5 GB"."""
    return f"{number / 1e9:.3g} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"

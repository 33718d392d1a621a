"""How much memory this process may still take, so that what can't fit is refused before it is tried."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

LIMIT_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Limit and use of a container, whose control group is mounted as the root (version 2, version 1)."""


def available_bytes() -> int:
    """Return the bytes that can be taken without swapping, by the machine and by the container's limit."""
    available: int = psutil.virtual_memory().available
    for limit_file, used_file in LIMIT_FILES:
        try:
            limit, used = (int(Path(name).read_text(encoding="ascii")) for name in (limit_file, used_file))
        except (OSError, ValueError):  # not there, or "max"
            continue
        # Files that were read count as used, and are let go where memory is wanted: half of them stay out of the sum.
        available = min(available, max(limit - used, limit // 2))
    return available


def peak_bytes() -> int:
    """Return the most that this process has held at a time; 0 where the system doesn't say."""
    if sys.platform == "win32":
        peak: int = psutil.Process().memory_info().peak_wset
        return peak
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe_bytes(number: int) -> str:
    """Return bytes as a person says them, such as "1.5 GB"."""
    return f"{number / 1e9:.3g} GB" if number >= 1e8 else f"{number / 1e6:.3g} MB"

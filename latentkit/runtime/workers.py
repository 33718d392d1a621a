"""Marks processes that a latentkit process has started, so that they don't print everything
twice.
"""

from __future__ import annotations

import os

VARIABLE = "LATENTKIT_WORKER"
"""Set in the environment of such processes."""


def is_worker() -> bool:
    """Return whether another latentkit process started this one, and prints for it."""
    return VARIABLE in os.environ

"""Processes that one process of ours has started to work for it: how they know, so that they print
nothing twice.
"""

from __future__ import annotations

import os

VARIABLE = "LATENTKIT_WORKER"
"""Set in their environment."""


def is_worker() -> bool:
    """Return whether another process of ours started this one, and speaks for it."""
    return VARIABLE in os.environ

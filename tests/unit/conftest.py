"""What unit tests share: parts of a small training run, and a store in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from small_training import SmallTraining


@pytest.fixture
def small() -> SmallTraining:
    return SmallTraining()


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    for clear in (True, False):
        store.store.clear()
        store.pseudo_dirs[:] = [""]
        if clear:
            yield store

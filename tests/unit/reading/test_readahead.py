"""What the kernel is told of: every batch of a cold pass exactly once, ahead of its reading;
nothing once the rows are in memory.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from latentkit.reading.readahead import ReadAhead
from latentkit.reading.stored_rows import ADVICE_BYTES, file_ranges
from latentkit.store.columns import Rows


def pass_through(
    num_batches: int, first: int, is_cold: bool, units: Rows | None = None
) -> tuple[list[int], list[list[int]], bool]:
    """All that was told of, what had been told before each batch was read, and whether the end is
    cold; nothing is read from disk.
    """
    batches = [np.array([number]) for number in range(num_batches)]
    told: list[int] = []
    ahead = ReadAhead(batches, units, first, is_cold, lambda rows: told.extend(rows.tolist()))
    before = []
    for number in range(first, num_batches):
        with ahead.reading(number):
            before.append(list(told))
    return told, before, ahead.is_cold(num_batches - 1)


@pytest.mark.parametrize("first", [0, 3, 9])
def test_cold_pass_tells_ahead_and_stops_when_no_disk_is_read(first: int) -> None:
    told, before, is_cold = pass_through(40, first, True)
    assert told == list(range(first, first + len(told)))
    assert 8 <= len(told) <= 20
    assert not is_cold
    for number, known in zip(range(first, first + 8), before, strict=False):
        assert number in known


def test_warm_pass_tells_nothing() -> None:
    assert pass_through(40, 0, False)[0] == []


def test_unit_by_unit_a_whole_unit_is_told_at_once() -> None:
    _, before, _ = pass_through(30, 0, True, np.repeat([4, 2, 7], 10))
    assert before[0] == list(range(20))
    assert before[10] == list(range(30))


def test_reading_from_disk_keeps_the_telling_going(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(64 * 4096))
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    told: list[int] = []
    ahead = ReadAhead(
        [np.array([number]) for number in range(64)],
        None,
        0,
        False,
        lambda rows: told.extend(rows.tolist()),
    )
    blocks = resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
    for number in range(64):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with ahead.reading(number):
            assert len(os.pread(file, 4096, number * 4096)) == 4096
    os.close(file)
    is_on_disk = (
        resource.getrusage(resource.RUSAGE_THREAD).ru_inblock > blocks
    )  # a temporary folder may lie in memory
    assert told == (list(range(64)) if is_on_disk else [])


def test_ranges_cover_the_rows_with_neighbors_merged() -> None:
    assert list(file_ranges(np.array([100, 110, 130, 140, 150, 150]), 10)) == [
        (100, 120),
        (130, 160),
    ]
    first, second = file_ranges(np.array([0]), ADVICE_BYTES + 1)
    assert (first, second) == ((0, ADVICE_BYTES), (ADVICE_BYTES, ADVICE_BYTES + 1))

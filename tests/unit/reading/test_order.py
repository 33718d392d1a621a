"""The order of an epoch, as a property of any dataset."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentkit.reading.order import Shuffle, epoch_batches

buckets_and_sizes = st.tuples(
    st.lists(st.integers(0, 3), min_size=1, max_size=80),
    st.integers(1, 9),
    st.integers(0, 5),
    st.sampled_from([True, False, "units"]),
)


@given(buckets_and_sizes)
def test_every_row_comes_once_in_batches_of_one_bucket(
    case: tuple[list[int], int, int, Shuffle],
) -> None:
    buckets, batch_size, epoch, shuffle = case
    batches = epoch_batches(
        np.array(buckets),
        np.arange(len(buckets)) // 7,
        batch_size,
        shuffle=shuffle,
        seed=3,
        epoch=epoch,
        world_size=1,
        tail="short",
    )
    assert sorted(row for batch in batches for row in batch.tolist()) == list(range(len(buckets)))
    assert all(
        len({buckets[row] for row in batch}) == 1 and 1 <= len(batch) <= batch_size
        for batch in batches
    )


@given(st.integers(1, 200), st.integers(1, 16), st.integers(1, 7), st.booleans())
def test_ranks_get_equally_many_batches_and_every_row_once(
    rows: int, batch_size: int, world_size: int, shuffle: bool
) -> None:
    zeros = np.zeros(rows, np.int64)
    needed = math.ceil(math.ceil(rows / batch_size) / world_size) * world_size
    if needed > rows:  # more batches than rows: it can't be done
        with pytest.raises(ValueError, match="can't be divided among"):
            epoch_batches(
                zeros,
                zeros,
                batch_size,
                shuffle=shuffle,
                seed=0,
                epoch=0,
                world_size=world_size,
                tail="short",
            )
        return
    batches = epoch_batches(
        zeros,
        zeros,
        batch_size,
        shuffle=shuffle,
        seed=0,
        epoch=0,
        world_size=world_size,
        tail="short",
    )
    shares = [batches[rank::world_size] for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for batch in share for row in batch.tolist()) == list(
        range(rows)
    )


def test_drop_leaves_whole_batches_only() -> None:
    zeros = np.zeros(25, np.int64)
    batches = epoch_batches(
        zeros, zeros, 4, shuffle=True, seed=0, epoch=0, world_size=4, tail="drop"
    )
    assert [len(batch) for batch in batches] == [4] * 4
    with pytest.raises(ValueError, match="too few for 7 ranks"):
        epoch_batches(zeros, zeros, 4, shuffle=True, seed=0, epoch=0, world_size=7, tail="drop")


def test_epochs_and_seeds_differ_and_repeat() -> None:
    zeros = np.zeros(50, np.int64)

    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(
            zeros, zeros, 8, shuffle=True, seed=seed, epoch=epoch, world_size=1, tail="short"
        )
        return [row for batch in batches for row in batch.tolist()]

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_unit_shuffle_reads_one_unit_after_the_other() -> None:
    units = np.repeat(np.arange(5), 10)
    batches = epoch_batches(
        np.zeros(50, np.int64),
        units,
        7,
        shuffle="units",
        seed=0,
        epoch=0,
        world_size=1,
        tail="short",
    )
    visited = [units[row] for batch in batches for row in batch.tolist()]
    changes = sum(a != b for a, b in itertools.pairwise(visited))
    assert changes == 4
    assert sorted(visited) != visited

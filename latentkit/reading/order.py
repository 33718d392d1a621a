"""The order of an epoch: a pure function of row buckets, seed, epoch and number of ranks."""

from __future__ import annotations

import heapq
from typing import Literal

import numpy as np
import numpy.typing as npt

from latentkit.store.columns import Rows

Shuffle = Literal[True, False, "units"]
Tail = Literal["short", "drop"]


def epoch_batches(
    buckets: npt.NDArray[np.integer],
    units: npt.NDArray[np.integer],
    batch_size: int,
    *,
    shuffle: Shuffle,
    seed: int,
    epoch: int,
    world_size: int,
    tail: Tail,
) -> list[Rows]:
    """Return the batches of one epoch for all ranks, as row numbers. Rank r takes every
    `world_size`-th batch, starting with the r-th.

    Every row is in exactly one batch (`tail="short"`), every batch contains rows of one bucket, and
    the number of batches is a multiple of `world_size`.

    Args:
        buckets: (rows,) bucket number of each row.
        units: (rows,) unit number of each row; `shuffle="units"` shuffles units, then the rows
            inside each, so that reading is sequential and each rank has its own units.
        batch_size: most rows per batch.
        shuffle: False keeps the order of rows within each bucket.
        seed, epoch: together they decide the shuffle.
        world_size: number of ranks.
        tail: "short" splits batches until their number is a multiple of `world_size`; "drop" leaves
            out short batches, then the last ones.

    Raises:
        ValueError: there are fewer rows than ranks with `tail="short"`, or not one full batch per
            rank with "drop".
    """
    generator = np.random.default_rng([seed, epoch])
    place_of_unit = generator.permutation(int(units.max()) + 1)
    batches: list[Rows] = []
    for bucket in np.unique(buckets):
        rows = _shuffle_rows(
            np.flatnonzero(buckets == bucket), shuffle, place_of_unit[units], generator
        )
        batches += [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    if tail == "drop":
        batches = [batch for batch in batches if len(batch) == batch_size]
    if shuffle:
        batches = [batches[place] for place in generator.permutation(len(batches))]
    batches = _divide_evenly(batches, world_size, tail)
    if shuffle == "units":
        # Each rank reads its own units one after the other, whatever buckets they contain.
        batches.sort(key=lambda batch: int(place_of_unit[units[batch[-1]]]))
        batches = [
            batch
            for first in range(len(batches) // world_size)
            for batch in batches[first :: len(batches) // world_size]
        ]
    return batches


def _shuffle_rows(
    rows: Rows,
    shuffle: Shuffle,
    place_of_row: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> Rows:
    """Return the rows in the epoch's order; with "units", rows of one unit are adjacent."""
    if shuffle:
        rows = generator.permutation(rows)
    if shuffle == "units":
        rows = rows[np.argsort(place_of_row[rows], kind="stable")]
    return rows


def _divide_evenly(batches: list[Rows], world_size: int, tail: Tail) -> list[Rows]:
    """Return the batches so that their number is a multiple of `world_size`."""
    missing = -len(batches) % world_size
    if tail == "drop":
        kept = len(batches) - len(batches) % world_size
        if not kept:
            raise ValueError(
                f"{len(batches)} full batches are too few for {world_size} ranks; use a smaller"
                " batch_size or tail='short'"
            )
        return batches[:kept]
    if len(batches) + missing > sum(map(len, batches)):
        raise ValueError(
            f"{sum(map(len, batches))} rows can't be divided among {world_size} ranks in equally"
            " many batches; use tail='drop'"
        )
    # The longest batch is halved repeatedly: no row is lost and no rank waits for another.
    heap = [(-len(batch), place) for place, batch in enumerate(batches)]
    heapq.heapify(heap)
    for _ in range(missing):
        _, place = heapq.heappop(heap)
        longest = batches[place]
        half = -(-len(longest) // 2)
        batches[place] = longest[:half]
        batches.append(longest[half:])
        heapq.heappush(heap, (-half, place))
        heapq.heappush(heap, (half - len(longest), len(batches) - 1))
    return batches

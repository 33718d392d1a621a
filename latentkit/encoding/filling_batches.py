"""Collects rows of a unit into batches of one bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from latentkit.preparing.sample_preparer import Row

FILLING_BYTES = 1 << 30
"""Most bytes of a unit's partly filled batches. One full batch, and as much again in other buckets,
is always allowed.
"""


class FillingBatches:
    """Partly filled batches of one unit, one per bucket. Which rows share a batch depends only on
    their order.

    Args:
        batch_size: rows of a full batch.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._rows: dict[str, list[Row]] = {}
        self._num_bytes = self._largest_bytes = 0

    def add(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        """Add rows, and yield each batch that is full or must be released to limit memory."""
        for row in rows:
            filling = self._rows.setdefault(row.view.bucket, [])
            filling.append(row)
            self._num_bytes += row.num_bytes
            self._largest_bytes = max(self._largest_bytes, row.num_bytes)
            if len(filling) == self._batch_size:
                yield self._pop(row.view.bucket)
            while self._num_bytes > max(FILLING_BYTES, 2 * self._batch_size * self._largest_bytes):
                yield self._pop(max(self._rows, key=self._bytes_of))

    def rest(self) -> Iterator[list[Row]]:
        """Yield the remaining batches at the end of the unit."""
        for bucket in sorted(self._rows):
            yield self._pop(bucket)

    def _pop(self, bucket: str) -> list[Row]:
        self._num_bytes -= self._bytes_of(bucket)
        return self._rows.pop(bucket)

    def _bytes_of(self, bucket: str) -> int:
        return sum(row.num_bytes for row in self._rows[bucket])

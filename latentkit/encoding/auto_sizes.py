"""`auto` settings: batch and unit sizes, measured once before the plan is written, on this device
with this encoder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from latentkit.contracts import Encoder, Prepared
from latentkit.encoding.batch_tensors import check_readable, encode_batch, stored_tensors
from latentkit.preparing.stack import num_bytes_of, stack
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.device import is_out_of_memory, pins_memory, synchronize
from latentkit.runtime.masks import without_mask
from latentkit.runtime.memory import available_bytes, peak_bytes, reset_peak
from latentkit.runtime.transfer import Transfer

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUDGET_SECONDS = 20.0
MAX_COST_RATIO = 1.1
"""A batch whose samples cost this much more than the best so far ends the search, because larger
ones are often slower on a CPU.
"""

UNIT_BYTES = 256 << 20
UNIT_SECONDS = 60.0
"""A crash loses a unit, so a unit is limited in work as well as in bytes."""

MIN_UNITS = 16
"""A small dataset has at least so many units, to be divided among several processes."""


MAX_SHARE_OF_RUN = 0.05
"""Most time that the search may take, relative to the time for all rows."""

MIN_ROWS_TO_MEASURE = int(2 / MAX_SHARE_OF_RUN)
"""With fewer rows, even encoding one row twice would take too large a share."""

MAX_SHARE_OF_MEMORY = 0.8
"""Share of the free memory that a larger batch may take, estimated from the last one."""


@dataclass(frozen=True)
class Measured:
    """The best batch size, seconds per row with it (0: not measured), and bytes of a stored row."""

    batch_size: int
    seconds_per_row: float
    bytes_per_row: int


def measure_batches(
    encoder: Encoder,
    prepared: Prepared,
    device: str,
    store: str,
    dtype: torch.dtype,
    batch_size: int | None,
    num_rows: int | None = None,
) -> Measured:
    """Find the best batch size and its seconds per row, with batches of copies of one prepared
    view.

    Args:
        encoder: encoder that accepts `prepared`.
        prepared: one prepared view.
        device: device of the encoder.
        store: "moments" or "sample".
        dtype: dtype of what is stored.
        batch_size: a given batch size, which is measured (or a smaller one); None tries larger ones
            until they no longer pay, don't fit, or take too long.
        num_rows: rows of the whole run, if known: no batch is larger, and measuring takes at most a
            twentieth of the run.
    """
    if num_rows is not None and num_rows < MIN_ROWS_TO_MEASURE:
        return Measured(batch_size or 1, 0.0, _row_bytes(prepared))
    trials = _Trials(encoder, prepared, device, store, dtype, num_rows)
    best = last = trials.measure(1)
    for size in CANDIDATES[1:]:
        if size > (batch_size or CANDIDATES[-1]) or not trials.can_afford(size, last):
            break
        try:
            last = trials.measure(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        if batch_size is not None or last.seconds_per_row < best.seconds_per_row:
            best = last
        elif last.seconds_per_row > best.seconds_per_row * MAX_COST_RATIO:
            break
    return best if batch_size is None else replace(best, batch_size=batch_size)


class _Trials:
    """Batches of copies of one row, and the time they have cost so far."""

    def __init__(
        self,
        encoder: Encoder,
        prepared: Prepared,
        device: str,
        store: str,
        dtype: torch.dtype,
        num_rows: int | None,
    ) -> None:
        self._encoder, self._prepared, self._device, self._store, self._dtype = (
            encoder,
            prepared,
            device,
            store,
            dtype,
        )
        self._num_rows = num_rows
        self._pool, self._transfer = BufferPool(pinned=pins_memory(device)), Transfer(device)
        self._spent_seconds = 0.0
        self._grown_bytes = 0

    def measure(self, size: int) -> Measured:
        """Encode a batch of this size once to warm up and once for its time."""
        reset_peak()  # loading the weights used more memory, which would hide the growth
        peak = peak_bytes()
        batch = self._transfer.to_device(stack([self._prepared.tensor] * size, self._pool))
        num_bytes = _stored_bytes(self._encoder, batch, self._store, self._dtype)
        seconds = _time(lambda: encode_batch(self._encoder, batch), self._device)
        self._spent_seconds += 2 * seconds
        self._grown_bytes += peak_bytes() - peak
        return Measured(size, seconds / size, num_bytes // size)

    def can_afford(self, size: int, last: Measured) -> bool:
        """Return whether a batch of this size, twice the last, is worth its time and fits into
        memory, if rows cost as much as before.
        """
        if self._num_rows is not None and size > self._num_rows:
            return False
        seconds = self._spent_seconds + 2 * size * last.seconds_per_row
        budget = BUDGET_SECONDS
        if self._num_rows is not None:
            # A batch twice as large at best halves the cost of a row and so of the run.
            budget = min(budget, MAX_SHARE_OF_RUN * self._num_rows * last.seconds_per_row / 2)
        # A full device raises an error that is caught; on a full machine the kernel kills the
        # process.
        grows_to = self._grown_bytes * size / last.batch_size
        return (
            seconds <= budget
            and grows_to - self._grown_bytes <= MAX_SHARE_OF_MEMORY * available_bytes()
        )


def _row_bytes(prepared: Prepared) -> int:
    """Return the bytes of a prepared row, which are more than its stored bytes."""
    tensor = without_mask(prepared.tensor)
    return max(1, num_bytes_of(prepared.tensor if tensor is None else tensor))


def choose_unit_size(num_samples: int, rows_per_sample: int, measured: Measured) -> int:
    """Return samples per unit: at most 256 MiB and about a minute of work, at least a batch, and
    few enough to make several units.
    """
    by_bytes = UNIT_BYTES // (measured.bytes_per_row * rows_per_sample)
    wanted = min(by_bytes, -(-num_samples // MIN_UNITS))
    if measured.seconds_per_row:
        wanted = min(wanted, int(UNIT_SECONDS / (measured.seconds_per_row * rows_per_sample)))
    batches = max(1, round(wanted / measured.batch_size))
    return batches * measured.batch_size


def _stored_bytes(encoder: Encoder, batch: object, store: str, dtype: torch.dtype) -> int:
    """Return the bytes of a stored row. This call also warms up the encoder."""
    latents = encode_batch(encoder, batch)
    check_readable(encoder, latents)
    return sum(tensor.nbytes for tensor in stored_tensors(latents, store, dtype).values())


def _time(run: Callable[[], object], device: str) -> float:
    """Return the seconds that `run` takes on the device."""
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    return max(time.perf_counter() - begun, 1e-9)

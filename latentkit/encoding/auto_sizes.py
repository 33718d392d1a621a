"""What `auto` means: batch and unit sizes measured once, before the plan is written, on this device
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
from latentkit.runtime.memory import available_bytes, forget_peak, peak_bytes
from latentkit.runtime.transfer import Transfer

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUDGET_SECONDS = 20.0
WORSE = 1.1
"""A batch whose samples cost this much more than the best so far ends the search: on a CPU larger
is often slower.
"""

UNIT_BYTES = 256 << 20
UNIT_SECONDS = 60.0
"""A unit is what a crash loses, so it is limited in work as well as in bytes."""

MIN_UNITS = 16
"""So that a small data set still spreads over several processes."""


SHARE_OF_RUN = 0.05
"""Of the time that all rows take: what finding the batch size for them may cost, at most."""

FEWEST_ROWS = int(2 / SHARE_OF_RUN)
"""Below, even encoding one row twice more would cost more than that."""

SHARE_OF_MEMORY = 0.8
"""Of the free memory that a larger batch may take, by what the last one took."""


@dataclass(frozen=True)
class Measured:
    """The best batch size, seconds per row (0: not measured), and bytes of a stored row."""

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
    """Find the best batch size and its seconds per row, by copies of one prepared view.

    Args:
        encoder: takes `prepared`.
        prepared: a row.
        device: that the encoder is on.
        store: "moments" or "mean", and
        dtype: of what is stored, for its bytes.
        batch_size: the given one, at which or below which seconds are measured; None tries larger
            ones until they no longer pay, no longer fit, or take too long.
        num_rows: of the whole run: no batch is larger, and measuring takes no more than a twentieth
            of it; None: not known.
    """
    if num_rows is not None and num_rows < FEWEST_ROWS:
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
        elif last.seconds_per_row > best.seconds_per_row * WORSE:
            break
    return best if batch_size is None else replace(best, batch_size=batch_size)


class _Trials:
    """Batches of copies of one row, and what they have cost so far."""

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
        """Encode a batch of this size, once to warm up and once for its time."""
        forget_peak()  # of loading the weights, below which no growth would show
        peak = peak_bytes()
        batch = self._transfer.to_device(stack([self._prepared.tensor] * size, self._pool))
        num_bytes = _stored_bytes(self._encoder, batch, self._store, self._dtype)
        seconds = _time(lambda: encode_batch(self._encoder, batch), self._device)
        self._spent_seconds += 2 * seconds
        self._grown_bytes += peak_bytes() - peak
        return Measured(size, seconds / size, num_bytes // size)

    def can_afford(self, size: int, last: Measured) -> bool:
        """Return whether a batch of this size is worth its time and fits memory."""
        if self._num_rows is not None and size > self._num_rows:
            return False
        seconds = self._spent_seconds + 2 * size * last.seconds_per_row
        budget = BUDGET_SECONDS
        if self._num_rows is not None:
            # Twice as large a batch at best halves what a row costs, and with it the run.
            budget = min(budget, SHARE_OF_RUN * self._num_rows * last.seconds_per_row / 2)
        # A device's own memory ends in an error that is caught; the machine's ends in the kernel's
        # killing.
        grows_to = self._grown_bytes * size / last.batch_size
        return (
            seconds <= budget
            and grows_to - self._grown_bytes <= SHARE_OF_MEMORY * available_bytes()
        )


def _row_bytes(prepared: Prepared) -> int:
    """Bytes of a row as it is prepared: more than it takes when stored."""
    tensor = without_mask(prepared.tensor)
    return max(1, num_bytes_of(prepared.tensor if tensor is None else tensor))


def choose_unit_size(num_samples: int, rows_per_sample: int, measured: Measured) -> int:
    """Return samples per unit: 256 MiB or a minute at most, and some units to share out."""
    by_bytes = UNIT_BYTES // (measured.bytes_per_row * rows_per_sample)
    wanted = min(by_bytes, -(-num_samples // MIN_UNITS))
    if measured.seconds_per_row:
        wanted = min(wanted, int(UNIT_SECONDS / (measured.seconds_per_row * rows_per_sample)))
    batches = max(1, round(wanted / measured.batch_size))
    return batches * measured.batch_size


def _stored_bytes(encoder: Encoder, batch: object, store: str, dtype: torch.dtype) -> int:
    """Also the warm-up."""
    latents = encode_batch(encoder, batch)
    check_readable(encoder, latents)
    return sum(tensor.nbytes for tensor in stored_tensors(latents, store, dtype).values())


def _time(run: Callable[[], object], device: str) -> float:
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    return max(time.perf_counter() - begun, 1e-9)

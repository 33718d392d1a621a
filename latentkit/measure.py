"""What `auto` means: batch and unit sizes measured once, before the plan is written, on this device with this encoder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentkit.batching import check_readable, encode_batch, stack, stored_tensors
from latentkit.buffers import BufferPool
from latentkit.contracts import Encoder, Prepared
from latentkit.runtime.device import is_out_of_memory, pins_memory, synchronize
from latentkit.runtime.transfer import Transfer

CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
BUDGET_SECONDS = 20.0
WORSE = 1.1
"""A batch whose samples cost this much more than the best so far ends the search: on a CPU larger is often slower."""

UNIT_BYTES = 256 << 20
UNIT_SECONDS = 60.0
"""A unit is what a crash loses, so it is limited in work as well as in bytes."""

MIN_UNITS = 16
"""So that a small data set still spreads over several processes."""


@dataclass(frozen=True)
class Measured:
    """The best batch size, seconds per row at it, and bytes that a row takes when stored."""

    batch_size: int
    seconds_per_row: float
    bytes_per_row: int


def measure_batches(encoder: Encoder, prepared: Prepared, device: str, store: str, dtype: torch.dtype, batch_size: int | None) -> Measured:
    """Seconds per row for batches of copies of one prepared view, from one row upwards.

    Args:
        batch_size: measure only this one; None tries larger ones until they no longer pay, no longer fit, or take too long.
    """
    best: Measured | None = None
    begun = time.monotonic()
    pool, transfer = BufferPool(pinned=pins_memory(device)), Transfer(device)
    for size in CANDIDATES if batch_size is None else (batch_size,):
        try:
            batch = transfer.to_device(stack([prepared.tensor] * size, pool))
            num_bytes = _stored_bytes(encoder, batch, store, dtype)
            seconds = min(_time(lambda batch=batch: encode_batch(encoder, batch), device) for _ in range(2)) / size  # type: ignore[misc]
        except RuntimeError as error:
            if best is None or not is_out_of_memory(error):
                raise
            break
        if best is None or seconds < best.seconds_per_row:
            best = Measured(size, seconds, num_bytes // size)
        elif seconds > best.seconds_per_row * WORSE:
            break
        if time.monotonic() - begun + 6 * seconds * size > BUDGET_SECONDS:
            break
    if best is None:
        raise AssertionError("at least one size was measured")
    return best


def choose_unit_size(num_samples: int, rows_per_sample: int, measured: Measured) -> int:
    """Samples per unit: at most 256 MiB and about a minute of work, at least a batch, and some units to share out."""
    by_bytes = UNIT_BYTES // (measured.bytes_per_row * rows_per_sample)
    by_time = int(UNIT_SECONDS / (measured.seconds_per_row * rows_per_sample))
    wanted = min(by_bytes, by_time, -(-num_samples // MIN_UNITS))
    batches = max(1, round(wanted / measured.batch_size))
    return batches * measured.batch_size


def _stored_bytes(encoder: Encoder, batch: object, store: str, dtype: torch.dtype) -> int:
    """Also the warm-up."""
    latents = encode_batch(encoder, batch)
    check_readable(encoder, latents)
    draws = [0] * len(next(iter(latents.values()))) if store == "sample" else None
    return sum(tensor.nbytes for tensor in stored_tensors(latents, store, dtype, draws).values())


def _time(run: Callable[[], object], device: str) -> float:
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    return max(time.perf_counter() - begun, 1e-9)

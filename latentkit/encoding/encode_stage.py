"""Third stage: encodes batches of prepared rows, in the worker's thread."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentkit.encoding.batch_encoder import BatchEncoder
from latentkit.encoding.batch_tensors import axis_of, stored_tensors
from latentkit.encoding.encode_job import EncodeJob
from latentkit.preparing.sample_preparer import Row
from latentkit.preparing.units_ahead import gather
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.device import can_compile, has_float64, warn_once
from latentkit.runtime.masks import MASK
from latentkit.runtime.transfer import Transfer, WaitClock
from latentkit.store.format import LATENTS
from latentkit.store.statistics import measure_on_device
from latentkit.store.writer import RowLabel


@dataclass(frozen=True)
class EncodedBatch:
    """The tensors of an encoded batch that are written.

    Args:
        tensors: by name, on the CPU in their stored dtype; may be read after `wait`.
        ragged_axis: see `UnitWriter.add`.
        measured: statistics computed on the device; None if the writer computes them.
        wait: returns when the tensors have been copied.
        idle_seconds: call after `wait`; returns how long the device was idle before this batch.
        inputs: the batch, if it is copied to the device in parallel to computation: its memory must
            not be reused before the copy ends.
    """

    bucket: str
    labels: Sequence[RowLabel]
    tensors: Mapping[str, Tensor]
    ragged_axis: int | None
    measured: Mapping[str, Tensor] | None
    wait: Callable[[], None]
    idle_seconds: Callable[[], float]
    inputs: Any


class EncodeStage:
    """Encodes the batches of one job.

    Args:
        pool: memory pool of batches.
    """

    def __init__(self, job: EncodeJob, device: str, pool: BufferPool, clock: WaitClock) -> None:
        self.compiles = job.settings.compile and can_compile(device)
        if job.settings.compile and not self.compiles:
            warn_once(
                f"{device}: torch can't compile for this device; encoding without compile: true"
            )
        float32 = (
            functools.partial(job.open_float32, device)
            if job.on_overflow == "retry-fp32" and job.open_float32
            else None
        )
        open_encoder = functools.partial(job.open_encoder, device)
        self._encoder = BatchEncoder(open_encoder, job.settings.batch_size, self.compiles, float32)
        self._job, self._pool, self._clock = job, pool, clock
        self._transfer, self._has_float64 = Transfer(device), has_float64(device)
        self._dtype = torch.float32 if job.dtype == "int8" else getattr(torch, job.dtype)

    def encode(self, rows: Sequence[Row]) -> EncodedBatch:
        """Encode rows of one bucket.

        Raises:
            EncoderError: as `BatchEncoder.encode`.
            PluginError: the rows differ in shape, dtype or names.
        """
        job, bucket, labels = self._job, rows[0].view.bucket, [row.label for row in rows]
        batch = gather(rows, self._pool)
        copied = self._transfer.to_device(batch)
        with self._clock.computing() as idle_seconds:
            latents = self._encoder.encode(copied, bucket, job.key_of(labels[0]))
            layout = self._encoder.layout
            ragged_axis = axis_of(layout, layout.ragged_axis) if layout.ragged_axis else None
            stored = stored_tensors(latents, job.store, self._dtype)
            measured = self._measure(stored)
            tensors, wait = self._transfer.to_host({**stored, **measured})
        found = {name: tensors.pop(name) for name in measured}
        kept = batch if self._transfer.runs_beside else None
        return EncodedBatch(
            bucket, labels, tensors, ragged_axis, found or None, wait, idle_seconds, kept
        )

    def _measure(self, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return statistics of rows with one shape, computed on the device if it supports float64;
        else nothing, and the writer computes them.
        """
        names = [name for name in LATENTS if name in stored and stored[name].device.type != "cpu"]
        if not names or MASK in stored or self._job.dtype == "int8" or not self._has_float64:
            return {}
        return measure_on_device(stored, names[0])

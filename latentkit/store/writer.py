"""One unit, from batches of latents to a committed file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from latentkit.contracts import Unit
from latentkit.store import statistics
from latentkit.store.columns import escape
from latentkit.store.folder import Folder, canonical_json
from latentkit.store.format import FORMAT_VERSION, TensorToWrite, write_unit

SPILL_BYTES = 64 << 20
"""A tensor that grows beyond this waits on disk, so that memory stays flat however long the unit."""

COPY_BYTES = 1 << 20

DTYPE_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}

NOT_FINITE = "the latents are not finite; encode with dtype bfloat16 or float32, or store with dtype float32"


@dataclass(frozen=True)
class RowLabel:
    """What a row says besides its tensors: position of its sample in the plan (streams: in its shard), view, media and how it was cut."""

    position: int
    view: str
    view_number: int = 0
    content: str | None = None
    geometry: Mapping[str, Any] | None = None
    key: str | None = None
    stamp: str | None = None
    attributes: Mapping[str, Any] | None = None


@dataclass
class _Spool:
    """One tensor in the making."""

    file: tempfile.SpooledTemporaryFile[bytes]
    dtype: str
    row_shape: tuple[int, ...]
    num_rows: int = 0


class UnitWriter:
    """Collects one unit's rows; nothing is visible before `commit`."""

    def __init__(self, unit: Unit, is_stream: bool = False) -> None:
        self.unit = unit
        self._is_stream = is_stream
        self._spools: dict[str, _Spool] = {}
        self._rows: list[tuple[RowLabel, str, str | None, str | None, int | None]] = []
        self._statistics: list[statistics.ChannelStatistics] = []

    @property
    def num_ok(self) -> int:
        return sum(status == "ok" for _, status, *_ in self._rows)

    @property
    def num_skipped(self) -> int:
        return len(self._rows) - self.num_ok

    def skip(self, label: RowLabel, reason: str) -> None:
        """Record a view that can't be had."""
        self._rows.append((label, "skipped", escape(reason), None, None))

    def add(self, bucket: str, labels: Sequence[RowLabel], tensors: Mapping[str, Tensor]) -> None:
        """Store a batch of one bucket: `tensors` by name ("moments", "latent", "indices"), on the CPU, in their stored dtype.

        Rows that are not finite are skipped with a reason instead.
        """
        keep = _finite_rows(tensors)
        for place in np.flatnonzero(~keep).tolist():
            self.skip(labels[place], NOT_FINITE)
        if not keep.all():
            chosen = torch.from_numpy(keep)
            labels = [label for label, good in zip(labels, keep, strict=True) if good]
            tensors = {name: tensor[chosen] for name, tensor in tensors.items()}
        if not labels:
            return
        for name, tensor in tensors.items():
            row = self._append(f"{bucket}/{name}", tensor)
        self._rows += [(label, "ok", None, bucket, row + place) for place, label in enumerate(labels)]
        self._measure(tensors)

    def commit(self, folder: Folder, settings: Mapping[str, Any], fingerprint: str) -> None:
        """Write the unit's file and make it visible, unless another process was first.

        Raises:
            StoreError: the folder can't be written.
        """
        merged = statistics.merge(self._statistics)
        header = {
            "format": "latentkit-unit",
            "version": str(FORMAT_VERSION),
            "fingerprint": fingerprint,
            "settings": canonical_json(settings),
            "statistics": canonical_json(merged.as_json() if merged else None),
        }
        with folder.create(unit_name(self.unit.name)) as file:
            write_unit(file, self._tensors(), header)
        self.close()

    def close(self) -> None:
        """Let go of spilled tensors."""
        for spool in self._spools.values():
            spool.file.close()

    def _append(self, name: str, tensor: Tensor) -> int:
        """The row number of the tensor's first row in the unit."""
        tensor = tensor.contiguous()
        spool = self._spools.get(name)
        if spool is None:
            file = tempfile.SpooledTemporaryFile(max_size=SPILL_BYTES)  # noqa: SIM115  # closed by close()
            spool = self._spools[name] = _Spool(file, DTYPE_CODES[tensor.dtype], tuple(tensor.shape[1:]))
        first = spool.num_rows
        spool.file.write(tensor.view(torch.uint8).numpy().data.cast("B"))
        spool.num_rows += len(tensor)
        return first

    def _measure(self, tensors: Mapping[str, Tensor]) -> None:
        if "moments" in tensors:
            moments = tensors["moments"].float().numpy()
            channels = moments.shape[1] // 2
            self._statistics.append(statistics.measure(moments[:, :channels], moments[:, channels:]))
        elif "latent" in tensors:
            self._statistics.append(statistics.measure(tensors["latent"].float().numpy(), None))

    def _tensors(self) -> list[TensorToWrite]:
        tensors = [
            TensorToWrite(name, spool.dtype, (spool.num_rows, *spool.row_shape), _chunks(spool.file))
            for name, spool in sorted(self._spools.items())
        ]
        rows = self._rows_buffer()
        return [*tensors, TensorToWrite("rows", "U8", (len(rows),), [rows])]

    def _rows_buffer(self) -> memoryview:
        """The ledger rows of this unit, an Arrow stream, in order of sample and then view."""
        rows = sorted(self._rows, key=lambda row: (row[0].position, row[0].view_number))
        labels = [label for label, *_ in rows]
        columns: dict[str, Any] = {
            "position": pa.array([label.position for label in labels], pa.int64()),
            "view": pa.array([label.view for label in labels], pa.string()),
            "content": pa.array([label.content for label in labels], pa.string()),
            "status": pa.array([status for _, status, *_ in rows], pa.string()),
            "reason": pa.array([reason for _, _, reason, *_ in rows], pa.string()),
            "bucket": pa.array([bucket for *_, bucket, _ in rows], pa.string()),
            "row": pa.array([row for *_, row in rows], pa.int64()),
            "geometry": pa.array([_json_or_none(label.geometry) for label in labels], pa.string()),
        }
        columns["stamp"] = pa.array([None if label.stamp is None else escape(label.stamp) for label in labels], pa.string())
        if self._is_stream:  # of whose samples the plan knows nothing
            columns["key"] = pa.array([escape(label.key or "") for label in labels], pa.string())
            columns["attributes"] = pa.array([_json_or_none(label.attributes) for label in labels], pa.string())
        sink = pa.BufferOutputStream()
        table = pa.table(columns)
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return memoryview(sink.getvalue())


def unit_name(name: str) -> str:
    """Where a unit lies."""
    return f"units/{name}.safetensors"


def _finite_rows(tensors: Mapping[str, Tensor]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) whether every value of each row is finite."""
    checks = [tensor.isfinite().flatten(1).all(1) for tensor in tensors.values() if tensor.is_floating_point()]
    count = len(next(iter(tensors.values())))
    return torch.stack(checks).all(0).numpy() if checks else np.ones(count, np.bool_)


def _chunks(file: BinaryIO | tempfile.SpooledTemporaryFile[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(COPY_BYTES):
        yield chunk


def _json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, default=str)



"""Read a unit whole and compare it with its own sha256, its plan and dataset.json."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import Unit
from latentkit.errors import DamagedError
from latentkit.store.folder import Folder
from latentkit.store.format import OFFSETS, StoredTensor, UnitHeader, read_header, unit_name
from latentkit.store.index import ReadUnit, parse_rows
from latentkit.store.plan import Plan
from latentkit.store.ragged import are_offsets

READ_BYTES = 4 << 20

NON_FINITE = {
    "F16": (np.uint16, np.int16, 0x7C00),
    "BF16": (np.uint16, np.int16, 0x7F80),
    "F32": (np.uint32, np.int32, 0x7F800000),
    "F64": (np.uint64, np.int64, 0x7FF0000000000000),
}
"""By dtype: unsigned and signed integer of its width, and positive infinity as such an integer.

Infinity and NaN are the largest signed integers; with the sign bit, the largest unsigned ones.
"""


@dataclass(frozen=True)
class WantedUnit:
    """A unit that should be there, by its plan (None: unreadable) and by dataset.json."""

    name: str
    unit: Unit | None
    plan: Plan | None
    stated: Mapping[str, Any] | None


def read_whole(folder: Folder, wanted: WantedUnit, headers: Mapping[str, str]) -> ReadUnit:
    """Read every byte of a unit and compare it with its plan and dataset.json.

    Raises:
        StoreError: the unit is not what was written, or not the unit that belongs there.
    """
    name = unit_name(wanted.name)
    where = f"{folder}/{name}"
    with folder.open_file(name) as file:
        header = read_header(file, folder.size(name), where)
        if wanted.plan and header.metadata.get("fingerprint") != wanted.plan.settings.fingerprint:
            raise DamagedError("a unit of another dataset, by its fingerprint")
        if wanted.stated and header.sha256 != wanted.stated["header_sha256"]:
            problem = (
                f"the file of unit {headers[header.sha256]}"
                if header.sha256 in headers
                else "not the unit that dataset.json describes"
            )
            raise DamagedError(f"{problem}, by the sha256 of its header")
        read = _read_data(file, header)
        rows = parse_rows(read["rows"], where)
    unit = wanted.unit or Unit(plan_of_unit(wanted.name), int(wanted.name.split("-")[1]), 0, 0)
    _check_ledger(
        rows,
        header,
        {
            name: np.frombuffer(content, np.int64)
            for name, content in read.items()
            if name != "rows"
        },
    )
    if wanted.plan and wanted.unit and not wanted.plan.settings.stream:
        _check_positions(rows, unit)
    return ReadUnit(unit, header, rows)


def _read_data(file: BinaryIO, header: UnitHeader) -> dict[str, bytes]:
    """Return the tensor "rows" and all offsets by name, from one walk through the unit."""
    digest, broken = hashlib.sha256(), None
    kept = {
        name: b""
        for name, tensor in header.tensors.items()
        if name == "rows" or (name.endswith(OFFSETS) and tensor.dtype == "I64")
    }
    file.seek(header.data_start)
    for name, tensor in sorted(
        header.tensors.items(), key=lambda item: (item[1].start, item[1].num_bytes)
    ):
        for start in range(0, tensor.num_bytes, READ_BYTES):
            piece = file.read(min(READ_BYTES, tensor.num_bytes - start))
            digest.update(piece)
            if name in kept:
                kept[name] += piece
            elif broken is None and not _is_finite(piece, tensor):
                broken = name
    if digest.hexdigest() != header.metadata.get("sha256"):
        raise DamagedError("its data are not those that were written, by their sha256")
    if broken:
        raise DamagedError(f"tensor {broken!r} holds values that are not finite")
    if "rows" not in kept:
        raise DamagedError("it has no rows")
    return kept


def _is_finite(piece: bytes, tensor: StoredTensor) -> bool:
    """Return whether all values in a piece of a tensor's bytes are finite."""
    if tensor.dtype not in NON_FINITE:
        return True
    unsigned, signed, infinity = NON_FINITE[tensor.dtype]
    values = np.frombuffer(piece, signed)
    sign = 1 << (8 * values.itemsize - 1)
    return int(values.max()) < infinity and int(values.view(unsigned).max()) < infinity | sign


def _check_ledger(
    rows: pa.Table, header: UnitHeader, offsets: Mapping[str, npt.NDArray[np.int64]]
) -> None:
    """Check that the ledger names each row once, with a reason for those that are skipped."""
    status = rows["status"]
    ok = pc.equal(status, "ok")
    if (
        status.null_count
        or not pc.all(pc.or_(ok, pc.equal(status, "skipped")), min_count=0).as_py()
    ):
        raise DamagedError("its ledger has a status that is neither ok nor skipped")
    if rows.filter(pc.and_(pc.invert(ok), pc.is_null(rows["reason"]))).num_rows:
        raise DamagedError("its ledger has a skipped row without a reason")
    stored = rows.filter(ok).select(["bucket", "row"])
    lengths: dict[str, set[int]] = {}
    for name, tensor in header.tensors.items():
        if "/" not in name[:-1] or name.startswith("_pad/"):
            continue
        if name in offsets:
            values = header.tensors.get(name.removesuffix(OFFSETS))
            if values is None or not are_offsets(offsets[name], (values.shape or (0,))[0]):
                raise DamagedError(
                    f"tensor {name!r} doesn't ascend from 0 to the positions that there are"
                )
            lengths.setdefault(name.rpartition("/")[0], set()).add(len(offsets[name]) - 1)
        elif name + OFFSETS not in offsets:
            lengths.setdefault(name.rpartition("/")[0], set()).update(tensor.shape[:1])
    counts = {
        count["values"]: count["counts"] for count in pc.value_counts(stored["bucket"]).to_pylist()
    }
    if {bucket: {count} for bucket, count in counts.items()} != lengths:
        raise DamagedError(
            "its ledger and its tensors don't have the same buckets and numbers of rows"
        )
    for bucket in lengths:
        numbers = np.sort(stored.filter(pc.equal(stored["bucket"], bucket))["row"].to_numpy())
        if not np.array_equal(numbers, np.arange(len(numbers))):
            raise DamagedError(f"its ledger names a row of bucket {bucket!r} twice or not at all")


def _check_positions(rows: pa.Table, unit: Unit) -> None:
    """Check that the rows are the plan's samples, each once per view."""
    position = rows["position"].to_numpy()
    if len(position) and (position.min() < unit.start or position.max() >= unit.stop):
        raise DamagedError(
            "a unit of another number or plan: it holds samples that the plan has elsewhere"
        )
    num_views = len(rows["view"].unique())
    if (
        len(position) != num_views * (unit.stop - unit.start)
        or (np.bincount(position - unit.start) != num_views).any()
    ):
        raise DamagedError(
            f"it doesn't hold each of its {unit.stop - unit.start} samples once per view"
        )


def num_bytes_of(header: UnitHeader) -> int:
    """Return the size of a unit's file in bytes."""
    return header.data_start + sum(tensor.num_bytes for tensor in header.tensors.values())


def plan_of_unit(name: str) -> int:
    """Return the number of the plan in a unit's name."""
    return int(name.split("-")[0])

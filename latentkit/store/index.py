"""The index: one row per (sample, view). It depends only on plans and units. `open` reads
index/<number>.parquet.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentkit.contracts import Unit
from latentkit.errors import DamagedError
from latentkit.store.columns import concat_structs, structs_of_json
from latentkit.store.folder import Folder
from latentkit.store.format import LEDGER_COLUMNS, UnitHeader, read_header, unit_name
from latentkit.store.plan import Plan

COLUMNS = (
    "key",
    "stamp",
    "content",
    "view",
    "status",
    "reason",
    "unit",
    "bucket",
    "row",
    "geometry",
    "attributes",
)
HASHED_BYTES = 4 << 20
"""Bytes that are read at once while a unit is hashed."""

SAMPLE = "sample"
"""Column while an index is built: the plan's row that each index row belongs to."""


@dataclass(frozen=True)
class ReadUnit:
    """A committed unit without its latents: its header, and its ledger rows as they are stored."""

    unit: Unit
    header: UnitHeader
    rows: pa.Table


def read_unit(folder: Folder, unit: Unit) -> ReadUnit:
    """Read the header and the ledger rows of a committed unit.

    Raises:
        DamagedError: the unit is damaged.
        StoreError: the unit is missing.
    """
    file_name = unit_name(unit.name)
    where = f"{folder}/{file_name}"
    with folder.open_file(file_name) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        header = read_header(file, size, where)
        stored = header.tensors.get("rows")
        if stored is None:
            raise DamagedError(f"{where}: the unit has no rows")
        file.seek(stored.start)
        buffer = file.read(stored.num_bytes)
    return ReadUnit(unit, header, parse_rows(buffer, where))


def parse_rows(buffer: bytes, where: str) -> pa.Table:
    """Return the ledger from the bytes of a unit's tensor "rows".

    Raises:
        DamagedError: the ledger is damaged.
    """
    try:
        rows = pa.ipc.open_stream(buffer).read_all()
        rows.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(
            f"{where}: the unit's rows are damaged ({type(error).__name__})"
        ) from error
    there = dict(zip(rows.column_names, rows.schema.types, strict=True))
    if not LEDGER_COLUMNS.items() <= there.items() or any(
        rows[name].null_count for name in ("position", "view", "status")
    ):
        raise DamagedError(f"{where}: the unit's rows are not a ledger")
    return rows


def committed_units(folder: Folder) -> set[str]:
    """Return the names of all committed units."""
    return {
        name.removesuffix(".safetensors")
        for name in folder.list("units")
        if name.endswith(".safetensors")
    }


def index_of_chain(plans: Sequence[Plan], units: Mapping[str, ReadUnit]) -> pa.Table:
    """Return the index after the last of `plans`, each of which builds on the one before. `units`
    are by name.

    Raises:
        DamagedError: the units' rows aren't the plans'.
    """
    index: pa.Table | None = None
    try:
        for plan in plans:
            index = build_index(plan, [units[unit.name] for unit in plan.units()], index)
    except (ValueError, KeyError, TypeError, RecursionError, pa.ArrowException) as error:
        raise DamagedError(
            f"the units' rows don't form an index ({type(error).__name__})"
        ) from error
    if index is None:
        raise ValueError("no plan")
    return index


def build_index(plan: Plan, units: Sequence[ReadUnit], before: pa.Table | None) -> pa.Table:
    """Return one row per (sample, view) in the plan's order: those of its own units, and those that
    it keeps of the index `before`.
    """
    index = _encoded_rows(plan, units) if units else None
    if before is not None:
        kept = _kept_rows(plan, before)
        index = kept if index is None else _concat(index, kept)
    if index is None:
        raise DamagedError("the plan has neither units nor an index to build on")
    # A stable sort keeps the order of a sample's views, and of the samples in a stream's unit.
    order = np.argsort(index[SAMPLE].to_numpy(), kind="stable")
    return index.take(pa.array(order)).select(list(COLUMNS)).combine_chunks()


def _encoded_rows(plan: Plan, units: Sequence[ReadUnit]) -> pa.Table:
    """Return the rows of the plan's own units."""
    rows = pa.concat_tables([unit.rows for unit in units])
    names = pa.array([unit.unit.name for unit in units], pa.string())
    counts = [unit.rows.num_rows for unit in units]
    unit_column = names.take(pa.array(np.repeat(np.arange(len(units)), counts)))
    columns = {
        name: rows[name] for name in ("content", "view", "status", "reason", "bucket", "row")
    }
    columns |= {"unit": unit_column, "geometry": structs_of_json(rows["geometry"])}
    if plan.settings.stream:
        sample = np.repeat(plan_rows(plan)[[unit.unit.start for unit in units]], counts)
        columns |= {
            "key": rows["key"],
            "stamp": rows["stamp"].fill_null(""),
            "attributes": structs_of_json(rows["attributes"]),
        }
    else:
        position = _positions(plan, units, rows)
        sample = plan_rows(plan)[position]
        taken = plan.work.select(["key", "stamp", "attributes"]).take(pa.array(position))
        # The encoded media may be newer than the planned.
        columns |= {
            "key": taken["key"],
            "stamp": pc.coalesce(rows["stamp"], taken["stamp"]),
            "attributes": taken["attributes"],
        }
    return pa.table({**columns, SAMPLE: sample})


def _positions(plan: Plan, units: Sequence[ReadUnit], rows: pa.Table) -> npt.NDArray[np.int64]:
    """Return the row of `plan.work` for each ledger row, after checking that it belongs to the
    unit.
    """
    position: npt.NDArray[np.int64] = rows["position"].to_numpy()
    counts = [unit.rows.num_rows for unit in units]
    start = np.repeat([unit.unit.start for unit in units], counts)
    stop = np.repeat([unit.unit.stop for unit in units], counts)
    if ((position < start) | (position >= stop)).any():
        raise DamagedError("a unit contains rows of samples that the plan has in another unit")
    return position


def _kept_rows(plan: Plan, before: pa.Table) -> pa.Table:
    """Return the rows of the index `before` that the plan keeps, with the plan's keys, stamps and
    attributes.
    """
    by = "unit" if plan.settings.stream else "key"
    keeper = pc.index_in(
        before[by], value_set=plan.table["previous"].combine_chunks(), skip_nulls=True
    )
    kept = before.filter(pc.is_valid(keeper))
    sample = keeper.drop_null().cast(pa.int64())
    if not plan.settings.stream:
        for name in ("key", "stamp", "attributes"):
            kept = kept.set_column(
                kept.schema.get_field_index(name), name, plan.table[name].take(sample)
            )
    return kept.append_column(SAMPLE, sample)


def superseded_rows(plans: Sequence[Plan], units: Mapping[str, ReadUnit]) -> pa.Table:
    """Return key, view, status, reason and unit of the units' rows that the last of `plans` no
    longer has, with the keys they had then.
    """
    found = []
    for place, plan in enumerate(plans):
        if not plan.units():
            continue
        ledger = _encoded_rows(plan, [units[unit.name] for unit in plan.units()])
        by, called = ("unit", "previous") if plan.settings.stream else ("key", "key")
        now = ledger[by]  # the key in each later plan; null if superseded
        for later in plans[place + 1 :]:
            now = later.table[called].take(
                pc.index_in(
                    now, value_set=later.table["previous"].combine_chunks(), skip_nulls=True
                )
            )
        found.append(
            ledger.filter(pc.is_null(now)).select(["key", "view", "status", "reason", "unit"])
        )
    return pa.concat_tables(found)


def _concat(a: pa.Table, b: pa.Table) -> pa.Table:
    """Concatenate two indexes with the columns of both."""
    columns: dict[str, Any] = {}
    for name in (*COLUMNS, SAMPLE):
        if name in ("geometry", "attributes"):
            columns[name] = concat_structs(a[name].combine_chunks(), b[name].combine_chunks())
        else:
            columns[name] = pa.chunked_array([*a[name].chunks, *b[name].chunks], a[name].type)
    return pa.table(columns)


def plan_rows(plan: Plan) -> npt.NDArray[np.int64]:
    """Return the row of `plan.table` for each row of `plan.work`."""
    return np.flatnonzero(pc.is_valid(plan.table["unit"]).to_numpy())


def reason_by_key(index: pa.Table) -> dict[str, str]:
    """Return the reason for each sample that can't be used. A sample with a bad view is a bad
    sample.
    """
    skipped = index.filter(pc.equal(index["status"], "skipped"))
    return dict(zip(skipped["key"].to_pylist(), skipped["reason"].to_pylist(), strict=True))


def first_rows(index: pa.Table) -> pa.Table:
    """Return the first row of each sample."""
    codes = index["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    return index.take(pa.array(np.flatnonzero(np.diff(codes, prepend=-1))))


def index_bytes(index: pa.Table) -> bytes:
    """Return the index as a Parquet file, which is the same for the same rows."""
    sink = io.BytesIO()
    pq.write_table(
        index,
        sink,
        compression="zstd",
        use_dictionary=["view", "status", "reason", "unit", "bucket"],
    )
    return sink.getvalue()


def has_intact_data(folder: Folder, unit: ReadUnit) -> bool:
    """Return whether the unit's data has the hash in its header. Reads the whole file."""
    digest = hashlib.sha256()
    with folder.open_file(unit_name(unit.unit.name)) as file:
        file.seek(unit.header.data_start)
        while piece := file.read(HASHED_BYTES):
            digest.update(piece)
    return digest.hexdigest() == unit.header.metadata.get("sha256")

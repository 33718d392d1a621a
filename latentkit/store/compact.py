"""Compaction: copies a latent dataset's rows, bit for bit, into fewer and larger units, without
superseded rows.

A stream's units are copied unchanged. Merged ones would have to be encoded again as a whole when
one of their shards changes.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import Unit
from latentkit.errors import DamagedError, StoreError
from latentkit.runtime.masks import MASK
from latentkit.runtime.paths import in_shell
from latentkit.store import int8, statistics, writer
from latentkit.store.claims import Claims
from latentkit.store.columns import Rows
from latentkit.store.dataset_json import (
    count_superseded,
    describe_again,
    finalize,
    newest_number,
    read_dataset,
    read_index,
    read_units,
    refuse_missing_units,
)
from latentkit.store.folder import Folder
from latentkit.store.format import (
    LATENTS,
    LEDGER_COLUMNS,
    NUMPY_DTYPES,
    OFFSETS,
    STREAM_COLUMNS,
    TensorToWrite,
    unit_name,
    write_unit,
)
from latentkit.store.index import has_intact_data, index_of_chain
from latentkit.store.live_statistics import measure_stored
from latentkit.store.mapped_unit import Array, MappedUnit
from latentkit.store.plan import (
    Plan,
    plan_name,
    plan_numbers,
    plan_with_units,
    read_chain,
    read_plan,
    write_plan,
)
from latentkit.store.ragged import offsets_of

UNIT_BYTES = 512 << 20
COPIED_BYTES = 16 << 20
"""Bytes of a tensor's rows that are copied at once."""

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Compacted:
    """Result of a compaction: rows left out, and the number of units before and after."""

    num_dropped: int
    units_before: int
    units_after: int


def compact(folder: Folder) -> Compacted:
    """Drop superseded rows and merge small units. Units that need neither stay unchanged.

    Raises:
        StoreError: the dataset is unfinished, damaged, or in use by another process.
    """
    read_dataset(folder)  # so that a claim creates no folder
    claims = Claims(folder)
    with claims.heartbeat():
        if not claims.take("plan"):
            raise StoreError(
                f"{folder}: {', '.join(claims.holders())} is working on it. Compact it afterwards"
            )
        return _compact(folder)


def _compact(folder: Folder) -> Compacted:
    """Compact while no other process makes a plan."""
    document, chain = read_dataset(folder), read_chain(folder)
    if (
        chain and chain[-1].settings.compacts and newest_number(document) < chain[-1].number
    ):  # one that was killed
        finish_compaction(folder, chain[-1])
        document = read_dataset(folder)
    if not chain or newest_number(document) != chain[-1].number:
        raise StoreError(
            f"{folder} is unfinished; run `latentkit run {in_shell(f'{folder}/recipe.yaml')}` first"
        )
    index = read_index(folder, document)
    num_dropped, num_units = count_superseded(document, index.num_rows), len(document["units"])
    plan = _plan_compaction(chain[-1], index, document)
    num_after = len(plan.units())
    if not num_dropped and 2 * num_after > num_units:
        remove_dead(folder, chain)
        return Compacted(0, num_units, num_units)
    refuse_missing_units(folder, document)
    write_plan(folder, plan)
    plan = read_plan(folder, plan.number)
    if not plan.settings.compacts:  # another process considered our claim dead
        raise StoreError(
            f"{folder}: another process has started to encode changes. Compact it afterwards"
        )
    finish_compaction(folder, plan)
    return Compacted(num_dropped, num_units, num_after)


def finish_compaction(folder: Folder, plan: Plan) -> None:
    """Finish a plan that compacts, or wait for the process that does. Then remove what it
    replaces.
    """
    claims = Claims(folder)
    with claims.heartbeat():
        while not claims.take("compact"):
            time.sleep(POLL_SECONDS)
        document = read_dataset(folder)
        if (
            newest_number(document) < plan.number
        ):  # other processes may have finished it, and later plans too
            _copy_all(folder, plan, document)
        remove_dead(folder, [plan])


def remove_dead(folder: Folder, chain: Sequence[Plan]) -> None:
    """Remove plans, units and indexes that a compaction has replaced."""
    for number in plan_numbers(folder):
        if number >= chain[0].number:
            return
        for name in folder.list("units"):
            if name.startswith(f"{number:03d}-"):
                folder.remove(f"units/{name}")
        folder.remove(f"index/{number:03d}.parquet")
        folder.remove(plan_name(number))


# ---------------------------------------------------------------- the plan


def _plan_compaction(newest: Plan, index: pa.Table, document: Mapping[str, Any]) -> Plan:
    """Return a plan of everything in the index, in units of about `UNIT_BYTES`; for a stream, in
    the units still used.
    """
    if newest.settings.stream:
        units = newest.unit_names().dictionary_encode().indices.to_numpy()
        order = np.argsort(units, kind="stable")
        entries, units = newest.table.take(pa.array(order)), units[order]
    else:
        stored = document["units"].values()
        bytes_per_row = sum(unit["bytes"] for unit in stored) / max(
            1, sum(unit["rows"] for unit in stored)
        )
        starts = np.flatnonzero(
            np.diff(
                index["key"].combine_chunks().dictionary_encode().indices.to_numpy(), prepend=-1
            )
        )
        entries = index.take(pa.array(starts))
        _, units = np.unique(
            starts * bytes_per_row // UNIT_BYTES, return_inverse=True
        )  # numbers without gaps
    settings, previous = (
        replace(newest.settings, compacts=True),
        pa.nulls(entries.num_rows, pa.string()),
    )
    return plan_with_units(
        newest.number + 1,
        entries.select(["key", "stamp", "attributes"]),
        settings,
        pa.array(units, pa.int32()),
        previous,
    )


# ---------------------------------------------------------------- copying


def _copy_all(folder: Folder, plan: Plan, document: Mapping[str, Any]) -> None:
    """Copy every unit of the plan that isn't committed."""
    chain = read_chain(folder, before=plan.number)
    units = read_units(folder, chain)
    are_whole = folder.ask_each(functools.partial(has_intact_data, folder), units.values())
    for name, is_whole in zip(units, are_whole, strict=True):
        if not is_whole:
            raise DamagedError(
                f"{folder}/{unit_name(name)} is damaged. `latentkit verify {in_shell(folder)}"
                " --repair` repairs it"
            )
    index = index_of_chain(chain, units)
    opened = folder.ask_each(lambda name: MappedUnit(folder, name, document["units"][name]), units)
    mapped = dict(zip(units, opened, strict=True))
    used = set(index["unit"].unique().to_pylist())
    # The original values are gone, so a unit's error stays that of all its rows.
    errors = int8.merge_errors(unit.header.metadata for name, unit in units.items() if name in used)
    unit_of_rows = _unit_of_rows(plan, chain[-1], index)
    for unit in plan.units():
        start, stop = np.searchsorted(unit_of_rows, [unit.number, unit.number + 1]).tolist()
        if not folder.exists(unit_name(unit.name)):
            _copy_unit(
                folder,
                plan,
                unit,
                index.slice(start, stop - start),
                mapped,
                errors if unit.number == 0 else {},
            )
    finalize(folder, [plan], describe_again(document), lambda index: None)


def _unit_of_rows(plan: Plan, old: Plan, index: pa.Table) -> Rows:
    """Return the plan's unit number for each row of the index, in ascending order. `old` is the
    plan that it compacts.
    """
    keys = index["key"]
    if plan.settings.stream:  # any shard of the row's unit decides
        keys = old.table["key"].take(pc.index_in(index["unit"], value_set=old.unit_names()))
    units: Rows = (
        plan.table["unit"]
        .take(pc.index_in(keys, value_set=plan.table["key"].combine_chunks()))
        .to_numpy()
    )
    return units


def _copy_unit(
    folder: Folder,
    plan: Plan,
    unit: Unit,
    rows: pa.Table,
    mapped: Mapping[str, MappedUnit],
    errors: Mapping[str, int8.RoundingError],
) -> None:
    """Commit one unit with the latents and ledger of some rows of the index."""
    tensors, new_rows, pieces = [], np.zeros(rows.num_rows, np.int64), []
    buckets = rows["bucket"].combine_chunks()
    for bucket in sorted(buckets.unique().drop_null().to_pylist()):
        chosen = np.flatnonzero(
            pc.fill_null(pc.equal(buckets, bucket), False).to_numpy(zero_copy_only=False)
        )
        new_rows[chosen] = np.arange(len(chosen))
        old = rows.select(["unit", "row"]).take(pa.array(chosen))
        holding = [mapped[name].header.tensors for name in old["unit"].unique().to_pylist()]
        names = {
            name
            for header in holding
            for name in header
            if name.startswith(f"{bucket}/") and not name.endswith(OFFSETS)
        }
        copies = [_Copy(name, old, mapped) for name in names]
        tensors += [tensor for copy in copies for tensor in copy.tensors()]
        pieces += _measure(bucket, {copy.name: copy for copy in copies})
    settings = {
        "batch_size": plan.settings.batch_size,
        "threads": plan.settings.threads,
        "compile": plan.settings.compile,
    }
    header = writer.unit_header(
        plan.settings.fingerprint, settings, statistics.merge(pieces), errors
    )
    ledger = _ledger_rows(plan, unit, rows, new_rows)
    with folder.create(unit_name(unit.name)) as file:
        write_unit(
            file,
            [
                *sorted(tensors, key=lambda tensor: tensor.name),
                TensorToWrite("rows", "U8", (len(ledger),), [ledger]),
            ],
            header,
        )


class _Copy:
    """A tensor's rows in their new order.

    Args:
        name: name of the tensor in every unit; in a unit without a mask every row counts fully.
        old: unit and row number of each new row.
        mapped: all units by name.
    """

    def __init__(self, name: str, old: pa.Table, mapped: Mapping[str, MappedUnit]) -> None:
        units = old["unit"].combine_chunks().dictionary_encode()
        self.name, self._units = name, [mapped[unit] for unit in units.dictionary.to_pylist()]
        self._codes, self._numbers = units.indices.to_numpy(), old["row"].to_numpy()
        self._first = next(unit for unit in self._units if name in unit.header.tensors)
        self._like = self._first.header.tensors[name]
        self.is_ragged = name + OFFSETS in self._first.header.tensors

    def tensors(self) -> Iterator[TensorToWrite]:
        """Yield what is written: the tensor and, for ragged rows, their offsets."""
        length = len(self._numbers)
        if self.is_ragged:
            offsets = offsets_of(
                np.concatenate(
                    [np.diff(unit.offsets(self.name))[numbers] for unit, numbers in self._runs()]
                )
            )
            length = int(offsets[-1])
            yield TensorToWrite(self.name + OFFSETS, "I64", offsets.shape, [offsets.data.cast("B")])
        chunks = (
            np.ascontiguousarray(values).data.cast("B")
            for values, _ in self.chunks(self.rows_at_once)
        )
        yield TensorToWrite(self.name, self._like.dtype, (length, *self._like.shape[1:]), chunks)

    @property
    def rows_at_once(self) -> int:
        """Return how many rows have about `COPIED_BYTES`."""
        num_rows = (
            len(self._first.offsets(self.name)) - 1 if self.is_ragged else self._like.shape[0]
        )
        return rows_at_once(num_rows, self._like.num_bytes)

    def chunks(self, at_once: int) -> Iterator[tuple[Array, Rows | None]]:
        """Yield up to `at_once` rows of one unit at a time; for ragged rows, positions end to end
        and the length of each row.
        """
        for unit, numbers in self._runs():
            array, offsets = (
                self._tensor(unit, numbers),
                (unit.offsets(self.name) if self.is_ragged else None),
            )
            for begin in range(0, len(numbers), at_once):
                rows = numbers[begin : begin + at_once]
                if offsets is None:
                    yield array[rows], None
                    continue
                starts, stops = offsets[rows], offsets[rows + 1]
                parts = [
                    array[start:stop]
                    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
                ]
                yield np.concatenate(parts), stops - starts

    def _runs(self) -> Iterator[tuple[MappedUnit, Rows]]:
        """Yield runs of rows in one unit: the unit, and their numbers there."""
        edges = [0, *(np.flatnonzero(np.diff(self._codes)) + 1).tolist(), len(self._codes)]
        for start, stop in itertools.pairwise(edges):
            yield self._units[int(self._codes[start])], self._numbers[start:stop]

    def _tensor(self, unit: MappedUnit, numbers: Rows) -> Array:
        """Return a unit's tensor; a missing mask counts every position."""
        if self.name.endswith(f"/{MASK}") and self.name not in unit.header.tensors:
            return np.broadcast_to(np.uint8(1), (int(numbers.max()) + 1, *self._like.shape[1:]))
        return unit.tensor(self.name, tuple(NUMPY_DTYPES))[0]


def rows_at_once(num_rows: int, num_bytes: int) -> int:
    """Return how many of a tensor's rows have about `COPIED_BYTES`, at least one."""
    return max(1, COPIED_BYTES * num_rows // max(1, num_bytes))


def _measure(bucket: str, copies: Mapping[str, _Copy]) -> list[statistics.ChannelStatistics]:
    """Return statistics of the counted values of the copied rows."""
    pieces = []
    for name in LATENTS:
        latents, scales, masks = (
            copies.get(f"{bucket}/{part}") for part in (name, name + int8.SCALE, MASK)
        )
        if latents is None:
            continue
        at_once = latents.rows_at_once
        others = [
            other.chunks(at_once) if other else itertools.repeat((None, None))
            for other in (scales, masks)
        ]
        for (chunk, lengths), (scale, _), (mask, _) in zip(
            latents.chunks(at_once), *others, strict=False
        ):
            pieces.append(measure_stored(name, chunk, scale, mask, lengths))
    return pieces


def _ledger_rows(plan: Plan, unit: Unit, rows: pa.Table, new_rows: Rows) -> memoryview:
    """Return the ledger rows of the new unit, as the writer stores them."""
    count, ok = rows.num_rows, pc.equal(rows["status"], "ok").to_numpy()
    if plan.settings.stream:
        position = np.arange(count)
    else:
        keys = plan.work["key"].slice(unit.start, unit.stop - unit.start).combine_chunks()
        position = pc.index_in(rows["key"], value_set=keys).to_numpy() + unit.start
    columns = {
        name: rows[name].combine_chunks()
        for name in ("view", "content", "status", "reason", "bucket", "stamp")
    }
    columns |= {
        "position": pa.array(position, pa.int64()),
        "row": pa.array(new_rows, pa.int64(), mask=~ok),
    }
    columns["geometry"] = _json_texts(rows["geometry"])
    names = dict(LEDGER_COLUMNS)
    if plan.settings.stream:
        names |= STREAM_COLUMNS
        columns |= {
            "key": rows["key"].combine_chunks(),
            "attributes": _json_texts(rows["attributes"]),
        }
    table = pa.table({name: columns[name].cast(kind) for name, kind in names.items()})
    return writer.ledger_bytes(table)


def _json_texts(column: pa.ChunkedArray) -> pa.Array:
    """Return structs as JSON texts, as the ledger stores them. Nulls are fields that only other
    rows have.
    """
    rows = (
        (
            {name: value for name, value in row.items() if value is not None}
            if row is not None
            else None
        )
        for row in column.to_pylist()
    )
    return pa.array([None if row is None else writer.encode_json(row) for row in rows], pa.string())

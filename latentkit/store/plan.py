"""The plan of a run: what it will encode, written once before any work to plans/<number>.parquet.

It has one row per sample (for a stream: per shard) with key, stamp, attributes and unit. The file's
metadata contains every setting that could change a bit. If the source changes, a later plan has all
of its samples again. Those whose latents exist already have no unit, but `previous`: their key in
the plan before (for a stream: the unit that contains the shard).
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from latentkit.contracts import Entry, Unit
from latentkit.errors import DamagedError, SourceError
from latentkit.runtime.paths import in_shell
from latentkit.store.columns import StructBuilder, escape, read_parquet
from latentkit.store.fingerprint import fingerprint_of
from latentkit.store.folder import Folder, canonical_json

METADATA_KEY = b"latentkit"
TYPES = {"key": pa.string(), "stamp": pa.string(), "unit": pa.int32(), "previous": pa.string()}
COLUMNS = ("key", "stamp", "attributes", "unit", "previous")
FILE_NAME = re.compile(r"(\d{3}|[1-9]\d{3,9})\.parquet", re.ASCII)


@dataclass(frozen=True)
class PlanSettings:
    """Settings that every process of a run shares.

    Args:
        parts: name to value of everything that affects the value of a latent; their hash is the
            fingerprint.
        batch_size: rows per batch of one bucket.
        unit_size: samples per unit (streams: shards).
        threads: torch threads of the encoder.
        compile: whether the encoder is compiled.
        versions: versions of the libraries that the plan was made with; recorded, never compared.
        stream: whether rows are shards.
        compacts: whether units are made by copying; then no row depends on an earlier plan.
    """

    parts: Mapping[str, str]
    batch_size: int
    unit_size: int
    threads: int
    compile: bool
    versions: Mapping[str, str]
    stream: bool = False
    compacts: bool = False

    @property
    def fingerprint(self) -> str:
        """Return the sha256 of the parts, 64 hexadecimal digits."""
        return fingerprint_of(self.parts)


@dataclass(frozen=True)
class Plan:
    """A plan as it is read; `table` has the columns key, stamp, attributes, unit, previous."""

    number: int
    settings: PlanSettings
    table: pa.Table

    @functools.cached_property
    def work(self) -> pa.Table:
        """Return the rows that have a unit and so are encoded. `Unit.start` and `Unit.stop` count
        in them.
        """
        return (
            self.table.filter(pc.is_valid(self.table["unit"]))
            if self.table["unit"].null_count
            else self.table
        )

    @property
    def num_samples(self) -> int:
        """Return the number of rows in `work`."""
        return int(self.work.num_rows)

    def keys(self, start: int, stop: int) -> list[str]:
        """Return the keys of rows `start` to `stop` of `work`."""
        return self.work["key"].slice(start, stop - start).to_pylist()  # type: ignore[no-any-return]

    def units(self) -> list[Unit]:
        """Return every unit, in order. A unit is a run of rows in `work`."""
        numbers = self.work["unit"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        stops = [*starts[1:].tolist(), len(numbers)][: len(starts)]
        return [
            Unit(self.number, int(numbers[start]), start, stop)
            for start, stop in zip(starts.tolist(), stops, strict=True)
        ]

    def unit_names(self) -> pa.Array:
        """Return, for each row of `table`, the unit that contains it: this plan's, or for a stream
        `previous`; null for a sample of an earlier plan.
        """
        own = pc.binary_join_element_wise(
            f"{self.number:03d}",
            pc.utf8_lpad(pc.cast(self.table["unit"], pa.string()), 6, "0"),
            "-",
        )
        return (
            pc.coalesce(own, self.table["previous"]).combine_chunks()
            if self.settings.stream
            else own.combine_chunks()
        )


def list_entries(entries: Iterable[Entry]) -> pa.Table:
    """Return a table of what a source has, in order: key, stamp, attributes.

    Raises:
        SourceError: there is no entry, or a key occurs twice.
    """
    keys, stamps, attributes = [], [], StructBuilder()
    for entry in entries:
        keys.append(escape(entry.key))
        stamps.append(escape(entry.stamp))
        attributes.add(entry.attributes)
    if not keys:
        raise SourceError("the source has no samples")
    _check_unique(keys)
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "stamp": pa.array(stamps, pa.string()),
            "attributes": attributes.finish(),
        }
    )


def plan_of(
    number: int, entries: pa.Table, settings: PlanSettings, previous: pa.Array | None = None
) -> Plan:
    """Return a plan of the entries from `list_entries`. Those without `previous` get units."""
    if previous is None:
        previous = pa.nulls(entries.num_rows, pa.string())
    to_encode = previous.is_null().to_numpy(zero_copy_only=False)
    units = (np.cumsum(to_encode) - 1) // settings.unit_size
    return plan_with_units(
        number, entries, settings, pa.array(units.astype(np.int32), mask=~to_encode), previous
    )


def plan_with_units(
    number: int, entries: pa.Table, settings: PlanSettings, units: pa.Array, previous: pa.Array
) -> Plan:
    """Return a plan with given units, row by row."""
    return Plan(
        number, settings, entries.append_column("unit", units).append_column("previous", previous)
    )


def _check_unique(keys: Sequence[str]) -> None:
    """Check that all keys differ."""
    if len(set(keys)) == len(keys):
        return
    ordered = sorted(keys)
    twice = next(a for a, b in itertools.pairwise(ordered) if a == b)
    raise SourceError(
        f"the source gives the key {twice!r} more than once; every sample needs a unique key"
    )


def plan_name(number: int) -> str:
    """Return a plan's file name."""
    return f"plans/{number:03d}.parquet"


def number_of(name: str) -> int:
    """Return the plan's number from its file name."""
    return int(name.removeprefix("plans/").removesuffix(".parquet"))


def write_plan(folder: Folder, plan: Plan) -> None:
    """Commit the plan, unless another process was first. Read it back to find out."""
    metadata = {
        METADATA_KEY: canonical_json(
            {**asdict(plan.settings), "fingerprint": plan.settings.fingerprint}
        )
    }
    with folder.create(plan_name(plan.number)) as file:
        pq.write_table(plan.table.replace_schema_metadata(metadata), file, compression="zstd")


def read_plan(folder: Folder, number: int) -> Plan:
    """Read a committed plan.

    Raises:
        DamagedError: the plan is damaged.
        StoreError: the plan is missing.
    """
    name = plan_name(number)
    content = folder.read(name)
    try:
        table = read_parquet(content)
        settings: dict[str, Any] = json.loads(table.schema.metadata[METADATA_KEY])
        fingerprint = settings.pop("fingerprint")
        plan = Plan(
            number,
            TypeAdapter(PlanSettings).validate_json(json.dumps(settings), strict=True),
            table.select(list(COLUMNS)),
        )
        _check_table(plan.table)
        stated = plan.settings.fingerprint
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        repair = f"`latentkit verify {in_shell(folder)} --repair`"
        advice = (
            f"{repair} restores it if the dataset was finished. Delete it only if there is no unit"
        )
        raise DamagedError(
            f"{folder}/{name}: the plan is damaged ({type(error).__name__}); {advice}"
        ) from error
    if fingerprint != stated:
        raise DamagedError(
            f"{folder}/{name}: the plan's fingerprint doesn't match its parts; the file was changed"
        )
    return plan


def _check_table(table: pa.Table) -> None:
    """Check that the table has the form of a written plan."""
    table.validate(full=True)
    units = table["unit"].drop_null().to_numpy()
    if (
        any(table[name].type != kind for name, kind in TYPES.items())
        or table["key"].null_count
        or table["stamp"].null_count
    ):
        raise ValueError("not the columns of a plan")
    if len(units) and (units[0] < 0 or (np.diff(units) < 0).any()):
        raise ValueError("units out of order")


def plan_numbers(folder: Folder) -> list[int]:
    """Return the numbers of all committed plans, oldest first."""
    return sorted(
        int(match[1]) for name in folder.list("plans") if (match := FILE_NAME.fullmatch(name))
    )


def newest_plan(folder: Folder) -> Plan | None:
    """Return the plan with the highest number, or None."""
    numbers = plan_numbers(folder)
    return read_plan(folder, numbers[-1]) if numbers else None


def read_chain(folder: Folder, before: int | None = None) -> list[Plan]:
    """Return the newest plan (with a number below `before`) and all plans that it builds on, oldest
    first, back to the last compaction or the first plan.
    """
    chain: list[Plan] = []
    for number in reversed(plan_numbers(folder)):
        if before is not None and number >= before:
            continue
        chain.insert(0, read_plan(folder, number))
        if chain[0].settings.compacts:
            break
    for plan, number in zip(
        reversed(chain), itertools.count(chain[-1].number if chain else 0, -1), strict=False
    ):
        if plan.number != number:
            raise DamagedError(
                f"{folder}/{plan_name(number)} is missing. Copy it back, or choose another"
                " output.path"
            )
    return chain

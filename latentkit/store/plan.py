"""What a run set out to do, written once before any work: plans/<number>.parquet.

A row per sample (for a stream: per shard): key, stamp, attributes, unit. The file's metadata holds every setting that could change a bit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentkit.contracts import Entry, Unit
from latentkit.errors import SourceError, StoreError
from latentkit.store.columns import escape, read_parquet, struct_column
from latentkit.store.folder import Folder, canonical_json

METADATA_KEY = b"latentkit"


@dataclass(frozen=True)
class PlanSettings:
    """Settings that every process of a run shares.

    Args:
        parts: name to value of all that decides a latent's value; their hash is the fingerprint.
        batch_size: rows per batch of one bucket.
        unit_size: samples per unit (streams: shards).
        threads: torch threads of the encoder.
        compile: whether the encoder is compiled.
        versions: name to version of the libraries that the plan was made with; recorded, never compared.
        stream: rows are shards.
    """

    parts: Mapping[str, str]
    batch_size: int
    unit_size: int
    threads: int
    compile: bool
    versions: Mapping[str, str]
    stream: bool = False

    @property
    def fingerprint(self) -> str:
        """sha256 of the parts, 64 hexadecimal digits."""
        return fingerprint_of(self.parts)


def fingerprint_of(parts: Mapping[str, str]) -> str:
    """sha256 of name-value pairs; a part whose name starts with "decoder" is recorded but doesn't count."""
    return hashlib.sha256(canonical_json(counting_parts(parts)).encode()).hexdigest()


def counting_parts(parts: Mapping[str, str]) -> dict[str, str]:
    """The parts that decide a latent's value."""
    return {name: value for name, value in parts.items() if not name.startswith("encoder.decoder")}


@dataclass(frozen=True)
class Plan:
    """A plan as read back: `table` has the columns key, stamp, attributes, unit."""

    number: int
    settings: PlanSettings
    table: pa.Table

    @property
    def num_samples(self) -> int:
        return int(self.table.num_rows)

    def keys(self, start: int, stop: int) -> list[str]:
        """Keys of rows `start` to `stop`."""
        return self.table["key"].slice(start, stop - start).to_pylist()  # type: ignore[no-any-return]

    def units(self) -> list[Unit]:
        """Every unit, in order; a unit is a run of rows."""
        numbers = self.table["unit"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        stops = [*starts[1:].tolist(), len(numbers)]
        return [
            Unit(self.number, int(numbers[start]), start, stop) for start, stop in zip(starts.tolist(), stops, strict=True)
        ]


def build_plan(number: int, entries: Iterable[Entry], settings: PlanSettings) -> Plan:
    """A plan of all entries, in the source's order.

    Raises:
        SourceError: no entry, or one key twice.
    """
    keys, stamps, attributes = [], [], []
    for entry in entries:
        keys.append(escape(entry.key))
        stamps.append(escape(entry.stamp))
        attributes.append(entry.attributes)
    if not keys:
        raise SourceError("the source has no samples")
    _check_unique(keys)
    table = pa.table({
        "key": pa.array(keys, pa.string()),
        "stamp": pa.array(stamps, pa.string()),
        "attributes": struct_column(attributes),
        "unit": pa.array(np.arange(len(keys), dtype=np.int32) // settings.unit_size),
    })
    return Plan(number, settings, table)


def _check_unique(keys: Sequence[str]) -> None:
    if len(set(keys)) == len(keys):
        return
    ordered = sorted(keys)
    twice = next(a for a, b in itertools.pairwise(ordered) if a == b)
    raise SourceError(f"the source gives the key {twice!r} more than once; every sample needs a key of its own")


def plan_name(number: int) -> str:
    """Where a plan lies."""
    return f"plans/{number:03d}.parquet"


def write_plan(folder: Folder, plan: Plan) -> None:
    """Commit the plan, unless another process was first; read it back to know."""
    metadata = {METADATA_KEY: canonical_json({**asdict(plan.settings), "fingerprint": plan.settings.fingerprint})}
    with folder.create(plan_name(plan.number)) as file:
        pq.write_table(plan.table.replace_schema_metadata(metadata), file, compression="zstd")


def read_plan(folder: Folder, number: int) -> Plan:
    """The committed plan.

    Raises:
        StoreError: missing or damaged.
    """
    name = plan_name(number)
    content = folder.read(name)
    try:
        table = read_parquet(content)
        settings: dict[str, Any] = json.loads(table.schema.metadata[METADATA_KEY])
        fingerprint = settings.pop("fingerprint")
        plan = Plan(number, PlanSettings(**settings), table.select(["key", "stamp", "attributes", "unit"]))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        advice = "delete the folder, or the plan if no unit is there"
        raise StoreError(f"{folder}/{name}: the plan is damaged ({type(error).__name__}); {advice}") from error
    if fingerprint != plan.settings.fingerprint:
        raise StoreError(f"{folder}/{name}: the plan's fingerprint doesn't belong to its parts; the file was changed")
    return plan


def newest_plan(folder: Folder) -> Plan | None:
    """The plan with the highest number; None when there is none."""
    numbers = [int(name.removesuffix(".parquet")) for name in folder.list("plans") if name.removesuffix(".parquet").isdigit()]
    return read_plan(folder, max(numbers)) if numbers else None

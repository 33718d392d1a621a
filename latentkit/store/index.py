"""What `open` reads: index/<number>.parquet, and dataset.json which names it. Both are a function of plan and units alone."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from latentkit.contracts import LatentLayout, Normalization, Unit
from latentkit.errors import SourceError, StoreError
from latentkit.store import statistics
from latentkit.store.columns import read_parquet, struct_column
from latentkit.store.folder import Folder, canonical_json
from latentkit.store.format import UnitHeader, read_header
from latentkit.store.plan import Plan, plan_name
from latentkit.store.writer import unit_name

DATASET = "dataset.json"
RECIPE = "recipe.yaml"
FORMAT = "latentkit"
VERSION = 1

COLUMNS = ("key", "stamp", "content", "view", "status", "reason", "unit", "bucket", "row", "geometry", "attributes")


@dataclass(frozen=True)
class Description:
    """What dataset.json says of a dataset besides its plan and units."""

    layout: LatentLayout
    normalization: Normalization
    store: str
    dtype: str
    source: Mapping[str, Any]
    views: Sequence[str]


def read_unit(folder: Folder, name: str) -> tuple[UnitHeader, pa.Table]:
    """Header and ledger rows of a committed unit.

    Raises:
        StoreError: missing or damaged.
    """
    file_name = unit_name(name)
    size = folder.size(file_name)
    where = f"{folder}/{file_name}"
    with folder.open_file(file_name) as file:
        header = read_header(file, size, where)
        rows = header.tensors.get("rows")
        if rows is None:
            raise StoreError(f"{where}: the unit has no rows")
        file.seek(rows.start)
        buffer = file.read(rows.num_bytes)
    try:
        return header, pa.ipc.open_stream(buffer).read_all()
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{where}: the unit's rows are damaged ({type(error).__name__})") from error


def committed(folder: Folder) -> set[str]:
    """Names of all committed units."""
    return {name.removesuffix(".safetensors") for name in folder.list("units") if name.endswith(".safetensors")}


def build_index(plan: Plan, tables: Iterable[tuple[Unit, pa.Table]]) -> pa.Table:
    """A row per (sample, view), in the plan's order."""
    parts = [_index_of_unit(plan, unit, rows) for unit, rows in tables]
    return pa.concat_tables(_unify(parts))


def _index_of_unit(plan: Plan, unit: Unit, rows: pa.Table) -> dict[str, pa.Array]:
    position = rows["position"].combine_chunks()
    if plan.settings.stream:
        key, stamp = rows["key"].combine_chunks(), rows["stamp"].combine_chunks().fill_null("")
        attributes: list[Any] = [json.loads(text) if text else None for text in rows["attributes"].to_pylist()]
    else:
        taken = plan.table.take(position)
        # What was encoded may be newer than what was planned.
        key, stamp = taken["key"].combine_chunks(), pc.coalesce(rows["stamp"], taken["stamp"]).combine_chunks()
        attributes = taken["attributes"].combine_chunks()
    return {
        "key": key,
        "stamp": stamp,
        "content": rows["content"].combine_chunks(),
        "view": rows["view"].combine_chunks(),
        "status": rows["status"].combine_chunks(),
        "reason": rows["reason"].combine_chunks(),
        "unit": pa.array([unit.name] * rows.num_rows, pa.string()),
        "bucket": rows["bucket"].combine_chunks(),
        "row": rows["row"].combine_chunks(),
        "geometry": rows["geometry"].combine_chunks(),
        "attributes": attributes,
    }


def _unify(parts: Sequence[dict[str, Any]]) -> list[pa.Table]:
    """Tables of one schema: geometry, and a stream's attributes, become structs over all units at once."""
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        pieces = [part[name] for part in parts]
        if name == "geometry":
            texts = [text for piece in pieces for text in piece.to_pylist()]
            columns[name] = struct_column([json.loads(text) if text else None for text in texts])
        elif isinstance(pieces[0], list):
            columns[name] = struct_column([row for piece in pieces for row in piece])
        else:
            columns[name] = pa.chunked_array(pieces)
    return [pa.table(columns)]


def finalize(folder: Folder, plan: Plan, description: Description, check: Callable[[Mapping[str, str | None]], None]) -> None:
    """Write the index and dataset.json of a plan whose units are all committed.

    `check` is given each key's reason (None for a good sample) before anything is written, and may refuse.

    Raises:
        StoreError: a unit is damaged, belongs to another plan, or the rows are not the plan's.
    """
    units = plan.units()
    headers, tables = [], []
    for unit in units:
        header, rows = read_unit(folder, unit.name)
        if header.metadata.get("fingerprint") != plan.settings.fingerprint:
            raise StoreError(f"{folder}/{unit_name(unit.name)}: the unit belongs to another dataset, by its fingerprint")
        headers.append(header)
        tables.append((unit, rows))
    index = build_index(plan, tables)
    _check_complete(folder, plan, index, description.views)
    check(_reason_by_key(index))
    content = _parquet(index)
    name = f"index/{plan.number:03d}.parquet"
    with folder.create(name) as file:
        file.write(content)
    if folder.read(name) != content:
        raise StoreError(f"{folder}/{name} is there already and differs from what the units say; delete it and run again")
    folder.replace(DATASET, _dataset_json(folder, plan, description, headers, name, content))


def _reason_by_key(index: pa.Table) -> dict[str, str | None]:
    """Why a sample can't be used; one with a bad view is a bad sample."""
    reasons: dict[str, str | None] = dict.fromkeys(index["key"].to_pylist())
    skipped = index.filter(pc.equal(index["status"], "skipped"))
    return reasons | dict(zip(skipped["key"].to_pylist(), skipped["reason"].to_pylist(), strict=True))


def _check_complete(folder: Folder, plan: Plan, index: pa.Table, views: Sequence[str]) -> None:
    pairs = index.select(["key", "view"]).group_by(["key", "view"]).aggregate([([], "count_all")])
    if pairs.num_rows != index.num_rows:
        twice = pairs.filter(pc.greater(pairs["count_all"], 1))["key"][0].as_py()
        advice = "every sample needs a key of its own (source datasets: option key)"
        raise SourceError(f"{folder}: the source gives the key {twice!r} more than once; {advice}")
    expected = plan.num_samples * len(views)
    if not plan.settings.stream and index.num_rows != expected:
        raise StoreError(f"{folder}: the units hold {index.num_rows} rows, the plan has {expected} (samples x views)")


def _parquet(index: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(index, sink, compression="zstd", use_dictionary=["view", "status", "reason", "unit", "bucket"])
    return sink.getvalue()


def _dataset_json(
    folder: Folder, plan: Plan, description: Description, headers: Sequence[UnitHeader], index_name: str, index: bytes
) -> bytes:
    pieces = [json.loads(header.metadata["statistics"]) for header in headers]
    merged = statistics.merge(statistics.ChannelStatistics.from_json(piece) for piece in pieces if piece)
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": plan.settings.fingerprint,
        "parts": dict(plan.settings.parts),
        "store": description.store,
        "dtype": description.dtype,
        "views": list(description.views),
        "layout": asdict(description.layout),
        "normalization": asdict(description.normalization),
        "statistics": merged.summary() if merged else None,
        "source": dict(description.source),
        "index": {"name": index_name, "sha256": hashlib.sha256(index).hexdigest()},
        "plans": [plan_name(plan.number)],
        "units": {
            unit.name: {"bytes": folder.size(unit_name(unit.name)), "header_sha256": header.sha256}
            for unit, header in zip(plan.units(), headers, strict=True)
        },
    }
    document["sha256"] = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def read_dataset(folder: Folder) -> dict[str, Any]:
    """dataset.json, its own hash checked.

    Raises:
        StoreError: missing, unfinished, damaged or of a version that this program doesn't read.
    """
    where = f"{folder}/{DATASET}"
    if not folder.exists(DATASET):
        if folder.list("plans"):
            raise StoreError(f"{folder}: the run that makes this dataset is unfinished; run `latentkit run {folder}/recipe.yaml` to go on")
        raise StoreError(f"{folder} is not a latent dataset: there is no {DATASET}")
    try:
        document = json.loads(folder.read(DATASET))
        stated = document.pop("sha256")
        actual = hashlib.sha256(canonical_json(document).encode()).hexdigest()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise StoreError(f"{where} is damaged ({type(error).__name__}); `latentkit run {folder}/recipe.yaml` writes it again") from error
    if document.get("format") != FORMAT:
        raise StoreError(f"{where} is not a latent dataset's")
    if document.get("version") != VERSION:
        raise StoreError(f"{where} has format version {document.get('version')}; this program reads {VERSION}; update latentkit")
    if stated != actual:
        raise StoreError(f"{where} is damaged: its content doesn't match its own sha256")
    return dict(document)


def read_index(folder: Folder, document: Mapping[str, Any], columns: Sequence[str] | None = None) -> pa.Table:
    """The index that dataset.json names, its hash checked.

    Raises:
        StoreError: missing or damaged.
    """
    entry = document["index"]
    where = f"{folder}/{entry['name']}"
    content = folder.read(entry["name"])
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise StoreError(f"{where} is damaged: its content doesn't match the sha256 in {DATASET}")
    try:
        return read_parquet(content, columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"{where} is damaged ({type(error).__name__})") from error

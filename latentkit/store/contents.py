"""What a latent dataset says of its rows: remarks, skipped samples, and how full columns are."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import Remark
from latentkit.store.folder import Folder
from latentkit.store.index import committed, read_unit
from latentkit.store.plan import Plan


def source_remarks(document: Mapping[str, Any]) -> list[Remark]:
    """What the source remarked when dataset.json was written."""
    return [Remark(**remark) for remark in document["source"].get("remarks", ())]


def row_remarks(index: pa.Table) -> list[Remark]:
    """What the modality remarked: how many samples each text is of, and the first of them.

    The most frequent text comes first.
    """
    lists = _field(index, "geometry", "remarks")
    if lists is None or not pa.types.is_list(lists.type):
        return []
    texts, parents = pc.list_flatten(lists), pc.list_parent_indices(lists)
    keys = index["key"].combine_chunks().take(parents)
    pairs = pa.table({"text": texts, "key": keys}).filter(pc.is_valid(texts))
    pairs = pairs.group_by(["text", "key"], use_threads=False).aggregate([])
    if not pairs.num_rows:
        return []
    coded = pairs["text"].combine_chunks().dictionary_encode()
    codes, firsts, counts = np.unique(
        coded.indices.to_numpy(), return_index=True, return_counts=True
    )
    names, examples = coded.dictionary.to_pylist(), pairs["key"].take(pa.array(firsts)).to_pylist()
    found = zip(codes.tolist(), counts.tolist(), examples, strict=True)
    remarks = [Remark(names[code], count, example) for code, count, example in found]
    return sorted(remarks, key=lambda one: (-one.count, one.text))


def skipped_samples(index: pa.Table) -> dict[str, str]:
    """Key to reason of every sample with a view that can't be had, in the order of the source."""
    skipped = index.filter(pc.equal(index["status"], "skipped")).select(["key", "reason"])
    pairs = zip(*(column.to_pylist() for column in skipped.columns), strict=True)
    found: dict[str, str] = {}
    for key, reason in pairs:
        found.setdefault(key, reason)
    return found


def skipped_so_far(folder: Folder, plan: Plan) -> dict[str, str]:
    """Key to reason of every sample that a run under way has skipped, in the order of the plan.

    Raises:
        StoreError: a unit is damaged.
    """
    done, found = committed(folder), dict[str, str]()
    units = [unit for unit in plan.units() if unit.name in done]
    for unit in folder.ask_each(functools.partial(read_unit, folder), units):
        skipped = unit.rows.filter(pc.equal(unit.rows["status"], "skipped"))
        is_named = plan.settings.stream  # else by its place in the plan
        keys = skipped["key"] if is_named else plan.work["key"].take(skipped["position"])
        found |= zip(keys.to_pylist(), skipped["reason"].to_pylist(), strict=True)
    return found


@dataclass(frozen=True)
class Filling:
    """How full a column is.

    Args:
        kind: of its values, such as "text" or "list of number".
        rows: good rows that have a value; the others have None.
        empty: of these, rows whose text or list is empty.
    """

    kind: str
    rows: int
    empty: int = 0


def column_filling(attributes: pa.ChunkedArray) -> dict[str, Filling]:
    """Every field of some rows' attributes, and how many of the rows have it."""
    if not pa.types.is_struct(attributes.type):
        return {}
    return {
        field.name: _filling(pc.struct_field(attributes, field.name)) for field in attributes.type
    }


def describe_filling(columns: Mapping[str, Filling], total: int, thing: str) -> list[str]:
    """A line for each column: how many of `total` rows (or what `thing` is) have it."""
    lines = []
    for name, filling in columns.items():
        is_full = filling.rows == total > 1
        full = f"all {total} {thing}s" if is_full else f"{filling.rows} of {counted(total, thing)}"
        empty = f", {filling.empty} of them empty" if filling.empty else ""
        lines.append(f"{on_one_line(name)} ({filling.kind}): {full}{empty}")
    return lines


def counted(count: int, thing: str) -> str:
    """A number and what it counts, such as "1 row" or "2 rows"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def on_one_line(text: str) -> str:
    """Text whose line breaks are escaped; a key may hold any."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _filling(values: pa.ChunkedArray) -> Filling:
    kind, num_empty = values.type, 0
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        num_empty = pc.sum(pc.equal(pc.binary_length(values), 0)).as_py() or 0
    elif pa.types.is_list(kind):
        num_empty = pc.sum(pc.equal(pc.list_value_length(values), 0)).as_py() or 0
    return Filling(_kind(kind), len(values) - values.null_count, num_empty)


def _kind(kind: pa.DataType) -> str:
    """A type of Arrow's in plain words."""
    if pa.types.is_list(kind):
        return f"list of {_kind(kind.value_type)}"
    names = {
        "text": (pa.types.is_string, pa.types.is_large_string),
        "integer": (pa.types.is_integer,),
        "number": (pa.types.is_floating,),
        "true or false": (pa.types.is_boolean,),
        "no value": (pa.types.is_null,),
    }
    found = (name for name, tests in names.items() if any(test(kind) for test in tests))
    return next(found, str(kind))


def _field(index: pa.Table, column: str, name: str) -> pa.Array | None:
    """A field of a column of structs; None where there is none of that name."""
    if column not in index.column_names or not pa.types.is_struct(index[column].type):
        return None
    if index[column].type.get_field_index(name) < 0:
        return None
    return pc.struct_field(index[column], name).combine_chunks()

"""Reads what a latent dataset records about its rows: remarks, skipped samples, and the number of
rows with a value in each column.
"""

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
from latentkit.store.index import committed_units, read_unit
from latentkit.store.plan import Plan


def source_remarks(document: Mapping[str, Any]) -> list[Remark]:
    """Return the source's remarks from when dataset.json was written."""
    return [Remark(**remark) for remark in document["source"].get("remarks", ())]


def row_remarks(index: pa.Table) -> list[Remark]:
    """Return the modality's remarks: each text with its number of samples and the first of them,
    most frequent text first.
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
    """Return the reason for every skipped sample, by key, in the order of the source."""
    skipped = index.filter(pc.equal(index["status"], "skipped")).select(["key", "reason"])
    pairs = zip(*(column.to_pylist() for column in skipped.columns), strict=True)
    found: dict[str, str] = {}
    for key, reason in pairs:
        found.setdefault(key, reason)
    return found


def skipped_so_far(folder: Folder, plan: Plan) -> dict[str, str]:
    """Return the reason for every sample that an unfinished run has skipped, by key, in the order
    of the plan.

    Raises:
        StoreError: a unit is damaged.
    """
    done, found = committed_units(folder), dict[str, str]()
    units = [unit for unit in plan.units() if unit.name in done]
    for unit in folder.ask_each(functools.partial(read_unit, folder), units):
        skipped = unit.rows.filter(pc.equal(unit.rows["status"], "skipped"))
        is_named = plan.settings.stream  # otherwise by its position in the plan
        keys = skipped["key"] if is_named else plan.work["key"].take(skipped["position"])
        found |= zip(keys.to_pylist(), skipped["reason"].to_pylist(), strict=True)
    return found


@dataclass(frozen=True)
class Filling:
    """How many rows have a value in a column.

    Args:
        kind: type of its values, such as "text" or "list of number".
        rows: good rows with a value; the others have None.
        empty: how many of these have an empty text or list.
    """

    kind: str
    rows: int
    empty: int = 0


def column_filling(attributes: pa.ChunkedArray) -> dict[str, Filling]:
    """Return, for every field of some rows' attributes, how many rows have it."""
    if not pa.types.is_struct(attributes.type):
        return {}
    return {
        field.name: _filling(pc.struct_field(attributes, field.name)) for field in attributes.type
    }


def describe_fillings(columns: Mapping[str, Filling], total: int, thing: str) -> list[str]:
    """Return one line per column: how many of `total` rows (or other things) have it."""
    lines = []
    for name, filling in columns.items():
        is_full = filling.rows == total > 1
        full = f"all {total} {thing}s" if is_full else f"{filling.rows} of {counted(total, thing)}"
        empty = f", {filling.empty} of them empty" if filling.empty else ""
        lines.append(f"{escape_line_breaks(name)} ({filling.kind}): {full}{empty}")
    return lines


def counted(count: int, thing: str) -> str:
    """Return a number and what it counts, such as "1 row" or "2 rows"."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def escape_line_breaks(text: str) -> str:
    """Return text with escaped line breaks, because a key may contain any."""
    return text.replace("\r", "\\r").replace("\n", "\\n")


def _filling(values: pa.ChunkedArray) -> Filling:
    """Return how many values of a column are set and how many of them are empty."""
    kind, num_empty = values.type, 0
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        num_empty = pc.sum(pc.equal(pc.binary_length(values), 0)).as_py() or 0
    elif pa.types.is_list(kind):
        num_empty = pc.sum(pc.equal(pc.list_value_length(values), 0)).as_py() or 0
    return Filling(_kind(kind), len(values) - values.null_count, num_empty)


def _kind(kind: pa.DataType) -> str:
    """Return an Arrow type in plain words."""
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
    """Return a field of a column of structs; None if there is none of that name."""
    if column not in index.column_names or not pa.types.is_struct(index[column].type):
        return None
    if index[column].type.get_field_index(name) < 0:
        return None
    return pc.struct_field(index[column], name).combine_chunks()

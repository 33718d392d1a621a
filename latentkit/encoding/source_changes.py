"""Compares a source with the latent dataset that was made from it, and decides what the next plan
does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.store.columns import find_places
from latentkit.store.index import first_rows
from latentkit.store.plan import Plan

Rows = npt.NDArray[np.int64]
HashMedia = Callable[[Sequence[int]], Sequence[str | None]]
"""Takes positions in the source and returns the sha256 of each one's media; None for a sample that
can't be read.
"""


@dataclass(frozen=True)
class Counts:
    """Number of samples (for a stream: shards) by how they have changed since the dataset was
    made.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    removed: int = 0
    retried: int = 0
    relabeled: int = 0
    touched: int = 0
    reordered: bool = False

    @property
    def num_to_encode(self) -> int:
        """Return the number of samples that must be encoded."""
        return self.added + self.changed + self.retried

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        words = {
            "added": "added",
            "changed": "changed",
            "renamed": "renamed",
            "removed": "removed",
            "retried": "skipped before and tried again",
            "relabeled": "with other attributes",
            "touched": "touched, their media unchanged",
        }
        parts = [
            f"{getattr(self, name)} {word}" for name, word in words.items() if getattr(self, name)
        ]
        return ", ".join([*parts, *(["in another order"] if self.reordered else [])])


@dataclass(frozen=True)
class Changes:
    """Input of the next plan: each entry's key in the dataset (null: to encode), the counts, and
    the number of samples before.
    """

    previous: pa.Array
    counts: Counts
    num_before: int


def compare_samples(
    index: pa.Table,
    entries: pa.Table,
    hash_media: HashMedia,
    retry_skipped: bool,
    find_renamed: bool = True,
) -> Changes:
    """Compare the index (its columns key, stamp, content, status, attributes) with a source's
    entries.

    Media is read if a stamp has changed. With `find_renamed`, media of added samples is read if
    others were removed, because a renamed one is found by its content.
    """
    old = first_rows(index)
    place = find_places(entries["key"], old["key"])
    known, added = np.flatnonzero(place >= 0), np.flatnonzero(place < 0)
    gone = np.setdiff1d(np.arange(old.num_rows), place[known])
    changed, touched = _changed(old, entries, place, known, hash_media)
    renamed = (
        _find_renamed(old, gone, added, hash_media)
        if find_renamed and len(gone) and len(added)
        else {}
    )
    for row, before in renamed.items():
        place[row] = before
    num_retried = 0
    if retry_skipped:
        skipped = index.filter(pc.equal(index["status"], "skipped"))["key"].unique()
        again = np.flatnonzero(
            pc.is_in(old["key"].take(pa.array(np.maximum(place, 0))), value_set=skipped).to_numpy()
            & (place >= 0)
        )
        again = np.setdiff1d(again, changed)
        num_retried = len(again)
        changed, touched = np.union1d(changed, again), np.setdiff1d(touched, again)
    num_changed = len(changed) - num_retried
    place[changed] = -1
    kept = np.flatnonzero(place >= 0)
    counts = Counts(
        added=len(added) - len(renamed),
        changed=num_changed,
        renamed=len(renamed),
        removed=len(gone) - len(renamed),
        retried=num_retried,
        relabeled=_count_different(
            old["attributes"].take(pa.array(place[kept])),
            entries["attributes"].take(pa.array(kept)),
        ),
        touched=len(touched),
        reordered=bool((np.diff(place[np.setdiff1d(kept, list(renamed))]) < 0).any()),
    )
    previous = old["key"].combine_chunks().take(pa.array(place, mask=place < 0))
    return Changes(previous, counts, old.num_rows)


def compare_shards(plan: Plan, entries: pa.Table, retried_units: pa.Array) -> Changes:
    """Compare a stream's newest plan with its shards. The shards of a unit are kept or encoded
    again together.
    """
    table = plan.table
    place = find_places(entries["key"], table["key"])
    known = np.flatnonzero(place >= 0)
    same = known[
        _equal(table["stamp"].take(pa.array(place[known])), entries["stamp"].take(pa.array(known)))
    ]
    units = plan.unit_names()
    whole = pc.value_counts(units).to_pylist()
    kept_units = {
        count["values"]: count["counts"]
        for count in pc.value_counts(units.take(pa.array(place[same]))).to_pylist()
    }
    broken = [
        count["values"] for count in whole if kept_units.get(count["values"], 0) < count["counts"]
    ]
    previous_place = np.full(len(place), -1, np.int64)
    previous_place[same] = place[same]
    previous = units.take(pa.array(previous_place, mask=previous_place < 0))
    previous = pc.if_else(
        pc.is_in(previous, value_set=pa.array(broken, pa.string())), None, previous
    )
    num_unchanged = len(previous) - previous.null_count
    previous = pc.if_else(pc.is_in(previous, value_set=retried_units), None, previous)
    num_retried = num_unchanged - (len(previous) - previous.null_count)
    counts = Counts(
        added=len(place) - len(known),
        changed=len(known) - num_unchanged,
        removed=table.num_rows - len(known),
        retried=num_retried,
        reordered=bool((np.diff(place[known]) < 0).any()),
    )
    return Changes(previous, counts, table.num_rows)


def _changed(
    old: pa.Table, entries: pa.Table, place: Rows, known: Rows, hash_media: HashMedia
) -> tuple[Rows, Rows]:
    """Return the positions of entries with another stamp: those whose media has changed, and those
    whose media is the same.
    """
    same_stamp = _equal(
        old["stamp"].take(pa.array(place[known])), entries["stamp"].take(pa.array(known))
    )
    suspects = known[~same_stamp]
    if not len(suspects):
        return suspects, suspects
    before = old["content"].take(pa.array(place[suspects])).to_pylist()
    now = hash_media(suspects.tolist())
    differs = np.array(
        [new is None or new != content for new, content in zip(now, before, strict=True)]
    )
    return suspects[differs], suspects[~differs]


def _find_renamed(old: pa.Table, gone: Rows, added: Rows, hash_media: HashMedia) -> dict[int, int]:
    """Return, for positions of entries, the row of the old sample with the same content. Each row
    is used once.
    """
    by_content: dict[str, list[int]] = {}
    for row, content in zip(
        gone.tolist(), old["content"].take(pa.array(gone)).to_pylist(), strict=True
    ):
        if content is not None:
            by_content.setdefault(content, []).append(row)
    renamed = {}
    for position, content in zip(added.tolist(), hash_media(added.tolist()), strict=True):
        if content is not None and by_content.get(content):
            renamed[position] = by_content[content].pop(0)
    return renamed


def _equal(a: pa.ChunkedArray, b: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    equal: npt.NDArray[np.bool_] = pc.equal(a, b).to_numpy().astype(np.bool_)
    return equal


def _count_different(a: pa.ChunkedArray, b: pa.ChunkedArray) -> int:
    """Return how many rows of two columns of structs differ. A missing field is a null."""
    a, b = a.combine_chunks(), b.combine_chunks()
    if a.equals(b):
        return 0
    different = np.zeros(len(a), np.bool_)
    for name in {*_field_names(a), *_field_names(b)}:
        different |= _differ(_field(a, name), _field(b, name))
    return int(different.sum())


def _field_names(column: pa.Array) -> list[str]:
    return [field.name for field in column.type] if pa.types.is_struct(column.type) else []


def _field(column: pa.Array, name: str) -> pa.Array:
    return pc.struct_field(column, name) if name in _field_names(column) else pa.nulls(len(column))


def _differ(a: pa.Array, b: pa.Array) -> npt.NDArray[np.bool_]:
    """Return which values of two columns differ."""
    if a.equals(b):
        return np.zeros(len(a), np.bool_)
    if a.type == b.type and (pa.types.is_primitive(a.type) or pa.types.is_string(a.type)):
        unequal = pc.or_(
            pc.fill_null(pc.not_equal(a, b), False), pc.xor(pc.is_null(a), pc.is_null(b))
        )
        if pa.types.is_floating(a.type):
            unequal = pc.and_not(unequal, pc.fill_null(pc.and_(pc.is_nan(a), pc.is_nan(b)), False))
        different: npt.NDArray[np.bool_] = unequal.to_numpy(zero_copy_only=False).astype(np.bool_)
        return different
    return np.array(
        [not _is_same(x, y) for x, y in zip(a.to_pylist(), b.to_pylist(), strict=True)], np.bool_
    )


def _is_same(a: Any, b: Any) -> bool:
    """Return whether two values are equal; NaN equals NaN at any depth."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_is_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_is_same(value, b[name]) for name, value in a.items())
    return bool(a == b or (a != a and b != b))

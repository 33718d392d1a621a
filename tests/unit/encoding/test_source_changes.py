"""What a changed source means for the next plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from latentkit.contracts import Entry
from latentkit.encoding.source_changes import Changes, compare_samples
from latentkit.store.columns import struct_column
from latentkit.store.plan import list_entries


def index_of(
    rows: Sequence[tuple[str, str, str | None, dict[str, Any]]], skipped: Sequence[str] = ()
) -> pa.Table:
    """An index of key, stamp, content and attributes, two views each."""
    twice = [row for row in rows for _ in range(2)]
    return pa.table(
        {
            "key": [key for key, *_ in twice],
            "stamp": [stamp for _, stamp, *_ in twice],
            "content": pa.array([content for *_, content, _ in twice], pa.string()),
            "status": ["skipped" if key in skipped else "ok" for key, *_ in twice],
            "attributes": struct_column([attributes for *_, attributes in twice]),
        }
    )


def compare(
    index: pa.Table, entries: Sequence[Entry], contents: dict[str, str | None], retry: bool = False
) -> Changes:
    return compare_samples(
        index,
        list_entries(entries),
        lambda places: [contents[entries[place].key] for place in places],
        retry,
    )


def test_a_copy_of_a_renamed_sample_is_renamed_only_once() -> None:
    index = index_of([("a", "1", "A", {}), ("b", "1", "B", {})])
    changes = compare(
        index, [Entry("b", "1"), Entry("c", "1"), Entry("d", "1")], {"c": "A", "d": "A"}
    )
    assert changes.previous.to_pylist() == ["b", "a", None]
    assert str(changes.counts) == "1 added, 1 renamed"
    assert changes.counts.num_to_encode == 1


def test_media_are_read_only_where_a_stamp_changed() -> None:
    index = index_of([("a", "1", "A", {}), ("b", "1", "B", {}), ("c", "1", "C", {})])
    changes = compare(
        index, [Entry("a", "1"), Entry("b", "2"), Entry("c", "2")], {"b": "B", "c": "other"}
    )
    assert changes.previous.to_pylist() == ["a", "b", None]
    assert str(changes.counts) == "1 changed, 1 touched, their media unchanged"


def test_sample_that_could_not_be_read_then_or_now_counts_as_changed() -> None:
    index = index_of([("a", "1", None, {}), ("b", "1", "B", {})], skipped=["a"])
    changes = compare(index, [Entry("a", "2"), Entry("b", "2")], {"a": None, "b": None})
    assert changes.previous.null_count == 2
    assert changes.counts.changed == 2


def test_attributes_that_appear_vanish_or_change_type_are_counted() -> None:
    index = index_of(
        [
            ("a", "1", "A", {"text": "x"}),
            ("b", "1", "B", {"text": "y"}),
            ("c", "1", "C", {"text": None}),
        ]
    )
    entries = [
        Entry("a", "1", {"text": "x", "label": 3}),
        Entry("b", "1", {"text": "y"}),
        Entry("c", "1", {}),
    ]
    assert compare(index, entries, {}).counts.relabeled == 1
    assert (
        compare(index, [Entry("a", "1"), Entry("b", "1"), Entry("c", "1")], {}).counts.relabeled
        == 2
    )
    lists = [Entry("a", "1", {"text": ["x"]}), Entry("b", "1", {"text": ["y"]}), Entry("c", "1")]
    assert compare(index, lists, {}).counts.relabeled == 2


def test_nan_equals_nan() -> None:
    nan = float("nan")
    numbers: list[dict[str, Any]] = [
        {"score": nan, "all": [1.0, nan]},
        {"score": 1.0, "all": []},
        {"score": None, "all": None},
    ]
    keys = ["a", "b", "c"]
    index = index_of(
        [(key, "1", key, attributes) for key, attributes in zip(keys, numbers, strict=True)]
    )
    assert not compare(
        index,
        [Entry(key, "1", attributes) for key, attributes in zip(keys, numbers, strict=True)],
        {},
    ).counts
    others: list[dict[str, Any]] = [
        {"score": 1.0, "all": [1.0, nan]},
        {"score": nan, "all": []},
        {"score": None, "all": [nan]},
    ]
    assert (
        compare(
            index,
            [Entry(key, "1", attributes) for key, attributes in zip(keys, others, strict=True)],
            {},
        ).counts.relabeled
        == 3
    )


def test_renamed_sample_is_added_where_latents_hang_on_the_key() -> None:
    index = index_of([("a", "1", "A", {})])
    changes = compare_samples(
        index, list_entries([Entry("b", "1")]), lambda places: ["A"], False, find_renamed=False
    )
    assert changes.previous.to_pylist() == [None]
    assert str(changes.counts) == "1 added, 1 removed"


def test_another_order_alone_is_a_change() -> None:
    index = index_of([("a", "1", "A", {}), ("b", "1", "B", {})])
    assert not compare(index, [Entry("a", "1"), Entry("b", "1")], {}).counts
    changes = compare(index, [Entry("b", "1"), Entry("a", "1")], {})
    assert str(changes.counts) == "in another order"
    assert changes.counts.num_to_encode == 0


def test_skipped_samples_are_tried_again_only_on_request() -> None:
    index = index_of([("a", "1", "A", {}), ("b", "1", "B", {})], skipped=["b"])
    entries = [Entry("a", "1"), Entry("b", "1")]
    assert not compare(index, entries, {}).counts
    changes = compare(index, entries, {}, retry=True)
    assert changes.previous.to_pylist() == ["a", None]
    assert str(changes.counts) == "1 skipped before and tried again"

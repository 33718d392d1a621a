"""An index or unit that says what can't be ends in a `StoreError` that names it, never in a crash
or in other rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentkit as lk
from latentkit.errors import StoreError

UNIT = "000-000000"
GOOD = {"a/moments": np.ones((3, 4, 2, 2), np.float16)}
GOOD_ROWS: list[tuple[Any, ...]] = [(f"k{place}", "plain", UNIT, "a", place) for place in range(3)]


def change_document(path: Path, changes: dict[str, Any]) -> None:
    """dataset.json with other content and a hash that fits it."""
    document = json.loads((path / "dataset.json").read_text()) | changes
    del document["sha256"]
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (path / "dataset.json").write_text(
        json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    )


def read_all(path: Path) -> None:
    for batch in lk.open(path, columns=["text"]).batches(2):
        assert len(batch["key"])


def test_the_same_dataset_without_the_damage_is_read(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    read_all(write_dataset(tmp_path / "out", {UNIT: GOOD}, GOOD_ROWS))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("k", "plain", UNIT, "a", 3), "row 3 of tensor 'a/moments', which only has 3 rows"),
        (("k", "plain", UNIT, "a", 1 << 62), "row 4611686018427387904"),
        (("k", "plain", UNIT, "a", -1), "row number -1"),
        (("k", "plain", UNIT, "b", 0), "no tensor 'b/moments'"),
        (("k", "plain", UNIT, "../a", 0), "no tensor"),
        (("k", "plain", "000-000001", "a", 0), "unit '000-000001'"),
        (("k", "plain", "../../x", "a", 0), "unit '../../x'"),
        (("k", "plain", "000\0", "a", 0), "unit"),
        (("k", "plain", None, "a", 0), "rows without unit"),
        (("k", "plain", UNIT, None, 0), "rows without bucket"),
        (("k", "plain", UNIT, "a", None), "rows without row"),
        ((None, "plain", UNIT, "a", 0), "rows without key"),
    ],
)
def test_index_that_names_what_is_not_there(
    tmp_path: Path, write_dataset: Callable[..., Path], row: tuple[Any, ...], message: str
) -> None:
    path = write_dataset(tmp_path / "out", {UNIT: GOOD}, [*GOOD_ROWS, row])
    with pytest.raises(StoreError, match=message.replace("/", "[/]")):
        read_all(path)


@pytest.mark.parametrize("column", [0, 3])
def test_text_that_is_not_utf8(
    tmp_path: Path, write_dataset: Callable[..., Path], column: int
) -> None:
    row: list[Any] = list(GOOD_ROWS[0])
    row[column] = b"\xff\xfe"
    path = write_dataset(tmp_path / "out", {UNIT: GOOD}, [*GOOD_ROWS, tuple(row)])
    with pytest.raises(StoreError, match=r"index/000\.parquet is damaged"):
        read_all(path)


@pytest.mark.parametrize("place", [2, 3, 4])
def test_columns_of_another_type(
    tmp_path: Path, write_dataset: Callable[..., Path], place: int
) -> None:
    rows = [
        tuple({"wrong": 1.5} if column == place else value for column, value in enumerate(row))
        for row in GOOD_ROWS
    ]
    path = write_dataset(tmp_path / "out", {UNIT: GOOD}, rows)
    with pytest.raises(StoreError, match=r"index/000\.parquet is damaged"):
        read_all(path)


@pytest.mark.parametrize(
    "tensor",
    [
        np.ones((3, 4, 2, 2), np.float32),
        np.ones((3, 4, 2, 2), np.int16),
        np.ones((3, 6, 2, 2), np.float16),
        np.ones((3, 4, 4), np.float16),
        np.ones(48, np.float16),
        np.ones((3, 4, 0, 2), np.float16),
        np.array(1, np.float16),
    ],
    ids=["dtype", "unknown dtype", "channels", "axes", "flat", "empty rows", "scalar"],
)
def test_tensor_of_another_dtype_or_shape(
    tmp_path: Path, write_dataset: Callable[..., Path], tensor: Any
) -> None:
    path = write_dataset(
        tmp_path / "out", {UNIT: {"a/moments": tensor, "rows": np.zeros(1, np.int8)}}, GOOD_ROWS
    )
    with pytest.raises(StoreError, match="a/moments"):
        read_all(path)


def test_tensor_at_an_odd_byte(tmp_path: Path, write_dataset: Callable[..., Path]) -> None:
    path = write_dataset(tmp_path / "out", {UNIT: GOOD}, GOOD_ROWS)
    file = path / "units" / f"{UNIT}.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" "
    moved = len(header).to_bytes(8, "little") + header + content[8 + length :]
    file.write_bytes(moved)
    entry = {
        "bytes": len(moved),
        "rows": 3,
        "header_sha256": hashlib.sha256(moved[: 8 + len(header)]).hexdigest(),
    }
    change_document(path, {"units": {UNIT: entry}})
    with pytest.raises(StoreError, match="starts at byte"):
        read_all(path)


def test_units_that_disagree_about_a_bucket(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    other = {"a/moments": np.ones((3, 4, 2, 3), np.float16)}
    rows = [*GOOD_ROWS, ("other", "plain", "000-000001", "a", 0)]
    path = write_dataset(tmp_path / "out", {UNIT: GOOD, "000-000001": other}, rows)
    with pytest.raises(StoreError, match=r"000-000001.*other units"):
        read_all(path)


def test_normalization_that_does_not_fit_the_layout(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    path = write_dataset(
        tmp_path / "out",
        {UNIT: GOOD},
        GOOD_ROWS,
        normalization={"shift": [0.0] * 3, "scale": 1.0, "fold": {}},
    )
    with pytest.raises(StoreError, match="normalization"):
        read_all(path)

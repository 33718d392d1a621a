"""Offsets and masks that say what can't be end in a `DamagedError` that names them, never in a
crash or in other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latentkit as lk
from latentkit.errors import DamagedError
from latentkit.store.local_folder import LocalFolder
from latentkit.store.mapped_unit import MappedUnit

UNIT = "000-000000"
RAGGED = {
    "name": "latent",
    "kind": "gaussian",
    "axes": "CL",
    "channels": 2,
    "downscale": 4,
    "ragged_axis": "L",
}
ROWS: list[tuple[Any, ...]] = [(f"k{place}", "plain", UNIT, "a", place) for place in range(3)]
VALUES = np.arange(40, dtype=np.float16).reshape(10, 4) / 64
OFFSETS = np.array([0, 2, 3, 10])
Write = Callable[..., Path]


def write(
    path: Path, write_dataset: Write, offsets: Any, values: Any = VALUES, **more: Any
) -> Path:
    tensors = {"a/moments": values, "a/moments.offsets": offsets, **more}
    return write_dataset(
        path,
        {UNIT: {name: array for name, array in tensors.items() if array is not None}},
        ROWS,
        layout=RAGGED,
    )


def test_the_same_without_the_damage_is_read(tmp_path: Path, write_dataset: Write) -> None:
    data = lk.open(write(tmp_path / "out", write_dataset, OFFSETS), posterior="moments")
    assert [data[place]["moments"].shape for place in range(3)] == [(4, 2), (4, 1), (4, 7)]
    for place in range(3):
        np.testing.assert_array_equal(
            data[place]["moments"].T, VALUES[OFFSETS[place] : OFFSETS[place + 1]]
        )
    (batch,) = data.batches(3)
    assert batch["moments_mask"].sum(1).tolist() == [2, 1, 7]


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 3, 2, 10],
        [0, 2, 2, 10],
        [0, 2, 3, 11],
        [0, 2, 3, 9],
        [0, 2, 1 << 62, 10],
        [1, 2, 3, 10],
        [-1, 2, 3, 10],
        [0],
        [],
        [[0, 2, 3, 10]],
    ],
)
def test_offsets_that_lie(tmp_path: Path, write_dataset: Write, offsets: Any) -> None:
    path = write(tmp_path / "out", write_dataset, np.array(offsets, np.int64))
    for read in (
        lambda data: data[0],
        lambda data: list(data.batches(3)),
        lambda data: data.moments(0),
    ):
        with pytest.raises(DamagedError, match=r"moments.offsets"):
            read(lk.open(path))


@pytest.mark.parametrize(
    ("offsets", "values", "message"),
    [
        (None, VALUES, "no tensor 'a/moments.offsets'"),
        (OFFSETS.astype(np.float32), VALUES, "expected I64"),
        (OFFSETS[:-1] * 5, VALUES, "names row 2"),
        (OFFSETS, VALUES[:, :2], "4 channels"),
        (OFFSETS, VALUES.reshape(10, 4, 1), "rows"),
        (OFFSETS, VALUES.reshape(-1), "0 to 40, the number of positions"),
    ],
    ids=["missing", "dtype", "too few rows", "channels", "axes", "flat"],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, write_dataset: Write, offsets: Any, values: Any, message: str
) -> None:
    if message == "names row 2":
        offsets = np.array([0, 2, 10])
    with pytest.raises(DamagedError, match=message):
        lk.open(write(tmp_path / "out", write_dataset, offsets, values))[0]


def test_scales_of_other_rows(tmp_path: Path, write_dataset: Write) -> None:
    scales = {"a/moments.scale": np.ones((10, 4), np.float32)}
    tensors = {"a/moments": VALUES.astype(np.int8), "a/moments.offsets": OFFSETS, **scales}
    path = write_dataset(tmp_path / "out", {UNIT: tensors}, ROWS, dtype="int8", layout=RAGGED)
    with pytest.raises(DamagedError, match=r"moments.scale' is \[10, 4\], expected \[3, 4\]"):
        lk.open(path)[0]


@pytest.mark.parametrize(
    "mask",
    [
        np.ones((3, 3), np.int8),
        np.ones((2, 5), np.uint8),
        np.ones((3, 4), np.uint8),
        np.ones(15, np.uint8),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, write_dataset: Write, mask: Any) -> None:
    layout = RAGGED | {"ragged_axis": None}
    tensors = {"a/moments": np.ones((3, 4, 5), np.float16), "a/mask": mask}
    path = write_dataset(tmp_path / "out", {UNIT: tensors}, ROWS, layout=layout, masked="L")
    with pytest.raises(DamagedError, match="a/mask"):
        lk.open(path)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"layout": RAGGED | {"ragged_axis": "T"}},
        {"layout": RAGGED | {"ragged_axis": "C"}},
        {"layout": RAGGED, "normalization": {"shift": 0.0, "scale": 1.0, "fold": {"L": 2}}},
        {"layout": RAGGED, "normalization": {"shift": [[0.0] * 3] * 2, "scale": 1.0, "fold": {}}},
    ],
)
def test_descriptions_of_what_cannot_be(
    tmp_path: Path, write_dataset: Write, changes: dict[str, Any]
) -> None:
    path = write_dataset(
        tmp_path / "out",
        {UNIT: {"a/moments": VALUES, "a/moments.offsets": OFFSETS}},
        ROWS,
        **changes,
    )
    with pytest.raises(DamagedError, match=r"dataset\.json"):
        lk.open(path)


def test_offsets_without_what_they_belong_to(tmp_path: Path, write_dataset: Write) -> None:
    path = write_dataset(
        tmp_path / "out", {UNIT: {"a/moments.offsets": OFFSETS}}, ROWS, layout=RAGGED
    )
    with pytest.raises(DamagedError, match="no tensor 'a/moments'"):
        lk.open(path)[0]
    entry = lk.open(path).folder.read("dataset.json")
    unit = MappedUnit(
        LocalFolder(path),
        UNIT,
        {"header_sha256": entry.decode().split('"header_sha256": "')[1][:64]},
    )
    with pytest.raises(DamagedError, match="no tensor 'a/moments'"):
        unit.offsets("a/moments")

"""A source that changes again before what changed the first time is done; and what hangs on a
sample's key.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latentkit as lk
from latentkit.errors import SourceError
from latentkit.store.compact import COPIED_BYTES, rows_at_once
from latentkit.store.format import StoredTensor
from latentkit.upkeep.inspect_dataset import inspect_dataset

FIXED = {
    "batch_size": 2,
    "threads": 1,
    "output.unit_size": 2,
    "preview": 0,
    "output.dtype": "float32",
}
NUM_PHOTOS = 8


def encode(photos: Path, output: Path, encoder: Path, **overrides: Any) -> lk.LatentDataset:
    return lk.encode(photos, output, encoder=encoder, size=32, overrides={**FIXED, **overrides})


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(NUM_PHOTOS)


@pytest.fixture
def interrupted(
    photos: Path, kl_folder: Path, tmp_path: Path, begun: Callable[[], AbstractContextManager[None]]
) -> Path:
    """A finished dataset, with a plan for the picture "new.png" of which no unit is there."""
    output = tmp_path / "out"
    encode(photos, output, kl_folder)
    (photos / "new.png").write_bytes((photos / "003.png").read_bytes())
    with begun():
        encode(photos, output, kl_folder)
    return output


def test_sample_gone_before_its_turn_is_left_out(
    interrupted: Path, photos: Path, kl_folder: Path
) -> None:
    (photos / "new.png").unlink()
    data = encode(photos, interrupted, kl_folder)
    assert data.keys == [f"{number:03d}.png" for number in range(NUM_PHOTOS)]
    assert inspect_dataset(str(interrupted))["rows"] == {"ok": NUM_PHOTOS, "superseded": 1}


def test_sample_changed_before_its_turn_is_encoded_as_it_is_now(
    interrupted: Path, photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    (photos / "new.png").write_bytes((photos / "005.png").read_bytes())
    data = lk.open(str(encode(photos, interrupted, kl_folder).folder), posterior="mean")
    by_key = {data[index]["key"]: data[index]["latent"] for index in range(len(data))}
    torch.testing.assert_close(by_key["new.png"], by_key["005.png"], rtol=0, atol=1e-5)


def test_bad_samples_that_are_gone_do_not_count(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(16)
    bad = [photos / f"bad{number:02d}.png" for number in range(12)]
    encode(photos, tmp_path / "out", kl_folder)
    for file in bad:
        file.write_bytes(b"broken")
    with pytest.raises(SourceError, match="max_bad"):
        encode(photos, tmp_path / "out", kl_folder)
    for file in bad:
        file.unlink()
    assert len(encode(photos, tmp_path / "out", kl_folder)) == 16


def test_renamed_sample_is_cropped_as_from_scratch(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(4)
    for file in photos.glob("*.png"):
        with Image.open(file) as image:
            wide = image.resize((144, 48))
        wide.save(file)
    options = {"modality.with.crop": "random"}
    encode(photos, tmp_path / "out", kl_folder, **options)
    os.rename(photos / "002.png", photos / "zzz.png")
    ours = lk.open(
        str(encode(photos, tmp_path / "out", kl_folder, **options).folder), posterior="mean"
    )
    theirs = lk.open(
        str(encode(photos, tmp_path / "scratch", kl_folder, **options).folder), posterior="mean"
    )
    assert ours.keys == theirs.keys
    for index in range(len(ours)):
        torch.testing.assert_close(
            ours[index]["latent"], theirs[index]["latent"], rtol=0, atol=1e-5
        )


def test_ledger_lists_as_many_superseded_rows_as_are_counted(
    photos: Path, kl_folder: Path, tmp_path: Path
) -> None:
    for name in ("000.png", "001.png"):  # of one unit, alike in everything but the key
        (photos / name).write_bytes(b"broken")
    encode(photos, tmp_path / "out", kl_folder)
    (photos / "001.png").write_bytes((photos / "004.png").read_bytes())
    (photos / "005.png").rename(photos / "zz.png")
    encode(photos, tmp_path / "out", kl_folder)
    found = inspect_dataset(str(tmp_path / "out"), with_ledger=True)
    assert found["rows"]["superseded"] == 1
    assert [row["key"] for row in found["ledger"] if row["status"] == "superseded"] == ["001.png"]


def test_ledger_of_a_dataset_with_an_unfinished_plan_is_that_of_the_finished_one(
    interrupted: Path,
) -> None:
    assert len(inspect_dataset(str(interrupted), with_ledger=True)["ledger"]) == NUM_PHOTOS


@pytest.mark.parametrize("side", [8, 512, 8192])
def test_compaction_holds_a_bounded_number_of_bytes(side: int) -> None:
    stored = StoredTensor("F16", (1000, 4, side, side), 0)
    rows, row_bytes = rows_at_once(1000, stored.num_bytes), 2 * int(np.prod(stored.shape[1:]))
    assert rows >= 1
    assert rows == 1 or rows * row_bytes <= COPIED_BYTES < (rows + 1) * row_bytes

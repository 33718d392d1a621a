"""Datasets written by earlier programs are read by this one, and this one still writes the present
version's bytes.
"""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest
import torch

import latentkit as lk

HERE = Path(__file__).parent
PROGRAM = runpy.run_path(str(HERE / "make.py"))


NAMES = ("v1", "v1-ragged", "v1-masked")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        shutil.copytree(HERE / name, tmp_path / name)
    return tmp_path / "v1"


def test_version_1_reads_back(folder: Path) -> None:
    data = lk.open(folder, posterior="mean", columns=["text", "row"])
    rows = [row for row in range(5) if row != PROGRAM["SKIPPED"]]
    assert data.keys == [f"folder/{row}.png" for row in rows for _ in range(2)]
    for place, (row, view) in enumerate((row, view) for row in rows for view in range(2)):
        expected = PROGRAM["golden_moments"](row, view)
        assert torch.equal(torch.cat(list(data.moments(place).values())), expected)
        item = data[place]
        assert torch.equal(item["latent"][0], (expected[0].float() - 0.5) * 2.0)
        assert torch.equal(item["latent"][1], (expected[1].float() + 0.5) * 0.25)
        assert (item["text"], item["row"], item["view"]) == (
            PROGRAM["CAPTIONS"][row],
            row,
            ["plain", "hflip"][view],
        )


def test_ragged_rows_of_version_1_read_back(folder: Path) -> None:
    data = lk.open(folder.with_name("v1-ragged"), posterior="mean", columns=["row"])
    (batch,) = data.batches(5)
    assert batch["latent"].shape == (5, 2, 5)
    assert batch["latent_mask"].sum(1).tolist() == list(PROGRAM["LENGTHS"])
    for row, length in enumerate(PROGRAM["LENGTHS"]):
        given = PROGRAM["golden_row"](row)[:, :length].float()
        step = given.abs().amax(1, keepdim=True) / 127
        moments = torch.cat(list(data.moments(row).values()))
        torch.testing.assert_close(moments, (given / step).round() * step, rtol=1e-6, atol=0)
        assert torch.equal(data[row]["latent"], (moments[:2] - 0.5) * 2.0)
        assert torch.equal(batch["latent"][row, :, :length], data[row]["latent"])
        assert data[row]["row"] == row


def test_masked_rows_of_version_1_read_back(folder: Path) -> None:
    data = lk.open(folder.with_name("v1-masked"))
    (batch,) = data.batches(5)
    assert batch["latent_mask"].int().tolist() == PROGRAM["golden_mask"](range(5)).tolist()
    for row in range(5):
        assert torch.equal(batch["latent"][row], (PROGRAM["golden_row"](row).float() - 0.5) * 2.0)


def test_version_1_is_still_written_byte_for_byte(tmp_path: Path) -> None:
    written = tmp_path / "make.py"
    shutil.copy(HERE / "make.py", written)
    runpy.run_path(str(written), run_name="__main__")
    # Parquet files name the version of their writing library, so units are compared whole and the
    # rest by what it says.
    for name in NAMES:
        for unit in sorted((HERE / name / "units").iterdir()):
            assert (tmp_path / name / "units" / unit.name).read_bytes() == unit.read_bytes()
        assert lk.open(tmp_path / name).keys == lk.open(HERE / name).keys

"""Other ways in: tables, tars and streams give the same latents as the folder they were made from.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import latentkit as lk

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 3, "preview": 0}


def write_tar(photos: Path, file: Path, numbers: range) -> None:
    with tarfile.open(file, "w") as tar:
        for number in numbers:
            for suffix in (".png", ".txt"):
                content = (photos / f"{number:03d}{suffix}").read_bytes()
                entry = tarfile.TarInfo(f"{number:03d}{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_parquet(photos: Path, file: Path, numbers: range) -> None:
    rows = [
        {
            "image": {"bytes": (photos / f"{n:03d}.png").read_bytes(), "path": None},
            "text": f"picture number {n}",
        }
        for n in numbers
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)


def latents(data: Any) -> list[torch.Tensor]:
    return [data.moments(index)["mean"] for index in range(len(data))]


def test_parquet_gives_what_the_folder_gives(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(7)
    (tmp_path / "table").mkdir()
    write_parquet(photos, tmp_path / "table" / "part.parquet", range(7))
    expected = lk.encode(photos, tmp_path / "a", encoder=kl_folder, size=32, overrides=FIXED)
    lk.encode(tmp_path / "table", tmp_path / "b", encoder=kl_folder, size=32, overrides=FIXED)
    data = lk.open(tmp_path / "b", columns=["text"])
    assert all(torch.equal(a, b) for a, b in zip(latents(expected), latents(data), strict=True))
    assert data[4]["text"] == "picture number 4"


def test_streamed_tars_give_what_the_folder_gives_a_unit_per_shard(
    make_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(7)
    (photos / "005.png").write_bytes(b"broken")
    tars = tmp_path / "tars"
    tars.mkdir()
    write_tar(photos, tars / "a.tar", range(4))
    write_tar(photos, tars / "b.tar", range(4, 7))
    expected = lk.encode(
        photos,
        tmp_path / "a",
        encoder=kl_folder,
        size=32,
        overrides={**FIXED, "output.unit_size": 4},
    )
    overrides = {**FIXED, "output.unit_size": 1, "source.with.streaming": True}
    streamed = lk.encode(tars, tmp_path / "b", encoder=kl_folder, size=32, overrides=overrides)
    assert len(list((tmp_path / "b" / "units").iterdir())) == 2
    assert len(streamed) == len(expected) == 6
    assert all(torch.equal(a, b) for a, b in zip(latents(expected), latents(streamed), strict=True))
    assert len(set(streamed.keys)) == 6
    lk.encode(tars, tmp_path / "b", encoder=kl_folder, size=32, overrides=overrides)

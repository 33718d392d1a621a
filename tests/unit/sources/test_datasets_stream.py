"""Source `datasets`, streaming: shards, their names, stamps and order, and damaged ones."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest

from latentkit.contracts import BuildContext, Sample, Shard, StreamSource
from latentkit.errors import SourceError
from latentkit.sources.datasets import open_datasets
from latentkit.sources.options import DatasetsConfig


def open_stream(path: Path, **options: Any) -> StreamSource:
    stream = open_datasets(
        DatasetsConfig(path=str(path), streaming=True, **options), BuildContext()
    )
    assert isinstance(stream, StreamSource)
    return stream


def write_parquet(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"photo": [name.encode() for name in names], "name": names, "label": [0] * len(names)}
    features = datasets.Features(
        {
            "photo": datasets.Value("binary"),
            "name": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat"]),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def write_tar(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in names:
            for suffix in ("png", "txt"):
                content = f"{path.name} {name} {suffix}".encode()
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_all(stream: StreamSource) -> list[Sample]:
    return [sample for shard in stream.shards() for sample in stream.read(shard)]


def test_every_file_is_a_shard_with_its_size_and_time(tmp_path: Path) -> None:
    for name in ("a/train-1.parquet", "a/train-0.parquet", "b/train-0.parquet"):
        write_parquet(tmp_path / "photos" / name, [name])
        os.utime(tmp_path / "photos" / name, ns=(0, 5_000_000_003))
    stream = open_stream(tmp_path / "photos")
    assert isinstance(stream, StreamSource)
    names = ["a/train-0.parquet", "a/train-1.parquet", "b/train-0.parquet"]
    sizes = [(tmp_path / "photos" / name).stat().st_size for name in names]
    assert stream.shards() == [
        Shard(name, f"{size}-5000000003") for name, size in zip(names, sizes, strict=True)
    ]
    assert [sample.media for sample in read_all(stream)] == [name.encode() for name in names]


def test_samples_of_a_shard_come_in_one_order_with_keys_of_their_own(tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos" / "0.parquet", ["a", "b"])
    write_parquet(tmp_path / "photos" / "1.parquet", ["c", "d"])
    stream = open_stream(tmp_path / "photos")
    last, first = stream.shards()[1], stream.shards()[0]
    expected = [
        Sample("1.parquet/00000000", b"c", {"name": "c", "label": "cat"}, f"{last.stamp}-0"),
        Sample("1.parquet/00000001", b"d", {"name": "d", "label": "cat"}, f"{last.stamp}-1"),
    ]
    assert list(stream.read(last)) == list(stream.read(last)) == expected
    assert [sample.key for sample in stream.read(first)] == [
        "0.parquet/00000000",
        "0.parquet/00000001",
    ]
    with pytest.raises(ValueError, match="not in list"):
        list(stream.read(Shard("other")))


def test_tars_that_number_their_files_alike_give_different_keys(tmp_path: Path) -> None:
    for name in ("000.tar", "001.tar"):
        write_tar(tmp_path / "tars" / name, ["0000", "0001"])
    samples = read_all(open_stream(tmp_path / "tars"))
    assert [sample.key for sample in samples] == [
        "000.tar/0000",
        "000.tar/0001",
        "001.tar/0000",
        "001.tar/0001",
    ]
    assert [sample.media for sample in samples][2] == b"001.tar 0000 png"
    assert [sample.attributes for sample in samples][2] == {
        "txt": "001.tar 0000 txt",
        "text": "001.tar 0000 txt",
    }


def test_single_file_is_one_shard(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ["x"])
    assert [shard.name for shard in open_stream(tmp_path / "a.tar").shards()] == ["a.tar"]


def test_key_column_names_the_samples(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a", "b"])
    assert [sample.key for sample in read_all(open_stream(tmp_path / "a.parquet", key="name"))] == [
        "a",
        "b",
    ]


def test_key_that_is_there_twice_is_named_with_its_shard(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", ["a", "b", "a"])
    with pytest.raises(SourceError, match=r"shard a\.parquet: the key 'a' occurs twice"):
        read_all(open_stream(tmp_path / "a.parquet", key="name"))


def test_missing_key_is_named_with_its_shard(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"photo": [b"x"], "name": [None]}).cast_column(
        "name", datasets.Value("string")
    ).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        SourceError, match=r"shard a\.parquet: the column 'name' has no key in row 0"
    ):
        read_all(open_stream(tmp_path / "a.parquet", key="name"))


def test_table_without_types_is_streamed_too(tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_text("text,n\none,1\ntwo,2\n")
    samples = read_all(open_stream(tmp_path / "texts.csv", media="text"))
    assert [(sample.key, sample.media, sample.attributes) for sample in samples] == [
        ("texts.csv/00000000", "one", {"n": 1}),
        ("texts.csv/00000001", "two", {"n": 2}),
    ]


def test_image_folder_is_one_shard_of_paths(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True)
        (tmp_path / "photos" / name).write_bytes(b"x")
    samples = read_all(open_stream(tmp_path / "photos"))
    assert [(sample.media, sample.attributes) for sample in samples] == [
        (tmp_path / "photos/cat/1.png", {"label": "cat"}),
        (tmp_path / "photos/dog/2.png", {"label": "dog"}),
    ]


def test_stream_outlives_pickling(tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos" / "0.parquet", ["a", "b"])
    write_tar(tmp_path / "tars" / "0.tar", ["a", "b"])
    for folder in (tmp_path / "photos", tmp_path / "tars"):
        stream = open_stream(folder)
        again = pickle.loads(pickle.dumps(stream))
        assert again.shards() == stream.shards()
        assert read_all(again) == read_all(stream)


def test_stream_is_the_same_in_another_process(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / "photos" / f"{number}.parquet", [f"{number}", "x"])
    program = (
        "import sys; from latentkit.sources.options import DatasetsConfig; from"
        " latentkit.contracts import BuildContext\n"
        "from latentkit.sources.datasets import open_datasets\n"
        "stream = open_datasets(DatasetsConfig(path=sys.argv[1], streaming=True),"
        " BuildContext())\n"
        "for shard in stream.shards():\n"
        "    for sample in stream.read(shard): print(sample)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "photos")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines == [str(sample) for sample in read_all(open_stream(tmp_path / "photos"))]


def test_shard_out_of_reach_is_an_os_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos" / "0.parquet", ["a"])
    stream = open_stream(tmp_path / "photos")
    (tmp_path / "photos" / "0.parquet").unlink()
    with pytest.raises(OSError, match=r"0\.parquet"):
        read_all(stream)

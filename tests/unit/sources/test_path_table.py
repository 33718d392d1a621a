"""A table whose rows name files, given as the source itself."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import latentkit as lk
from latentkit.contracts import BuildContext, Source
from latentkit.errors import SampleError, SourceError
from latentkit.sources import path_table
from latentkit.sources.datasets import open_datasets
from latentkit.sources.files import LocalFiles
from latentkit.sources.options import DatasetsConfig
from latentkit.sources.path_table import PROBED_ROWS, PathTable, open_path_table
from latentkit.testing import SourceContract


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def open_table(path: Path, **options: Any) -> PathTable:
    source = open_datasets(DatasetsConfig(path=str(path), **options), BuildContext())
    assert isinstance(source, PathTable)
    assert isinstance(source, Source)
    return source


def find_error(path: Path, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        open_datasets(DatasetsConfig(path=str(path), **options), BuildContext())
    return str(caught.value)


TABLE = "image_path,caption,mood\nimages/1.png,first,calm\nimages/0.png,second,wild\n"


class TestPathTableContract(SourceContract):
    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        write(tmp_path, {"images/0.png": "zero", "images/1.png": "one", "train.csv": TABLE})
        return DatasetsConfig(path=str(tmp_path / "train.csv"))

    @property
    def spec(self) -> Any:
        from latentkit.builtin.plugins import latentkit_sources

        return next(spec for spec in latentkit_sources() if spec.name == "datasets")


@pytest.mark.parametrize("options", [{}, {"media": "image_path"}])
def test_rows_are_read_in_their_order_under_their_paths(
    options: dict[str, Any], tmp_path: Path
) -> None:
    write(
        tmp_path,
        {
            "images/0.png": "zero",
            "images/1.png": "one",
            "images/2.png": "not named",
            "train.csv": TABLE,
        },
    )
    source = open_table(tmp_path / "train.csv", **options)
    samples = [source[0], source[1]]
    assert [(sample.key, sample.read()) for sample in samples] == [
        ("images/1.png", b"one"),
        ("images/0.png", b"zero"),
    ]
    assert samples[0].attributes == {"text": "first", "mood": "calm"}
    assert samples[0].media == tmp_path / "images" / "1.png"
    assert list(pickle.loads(pickle.dumps(source)).entries()) == list(source.entries())


def test_paths_may_be_absolute_climb_or_be_written_otherwise(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "lists/a.png": "a",
            "far/b.png": "b",
            "lists/sub/C.PNG": "c",
            "lists/d.png": "d",
            "lists/e.png": "e",
        },
    )
    names = [
        (tmp_path / "lists" / "a.png").as_uri(),
        "../far/b.png",
        "sub\\c.png",
        "./d.png",
        "e",
        str(tmp_path / "far" / "b.png"),
    ]
    write(tmp_path, {"lists/t.jsonl": "\n".join(json.dumps({"file": name}) for name in names)})
    source = open_table(tmp_path / "lists" / "t.jsonl")
    keys = [
        "a.png",
        "../far/b.png",
        "sub/C.PNG",
        "d.png",
        "e.png",
        (tmp_path / "far" / "b.png").as_posix(),
    ]
    assert [entry.key for entry in source.entries()] == keys
    assert [source[index].read() for index in range(6)] == [b"a", b"b", b"c", b"d", b"e", b"b"]


def test_folder_of_one_table_is_the_table(tmp_path: Path) -> None:
    write(tmp_path, {"far/a.png": "x", "lists/t.csv": "image,text\n../far/a.png,it\n"})
    assert [entry.key for entry in open_table(tmp_path / "lists").entries()] == ["../far/a.png"]


def test_files_in_a_folder_below_are_found_where_no_row_fits_as_it_stands(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "images/0.png": "zero",
            "images/1.png": "one",
            "t.csv": "id,caption\n1,first\n0,second\n7,gone\n",
        },
    )
    source = open_table(tmp_path / "t.csv")
    assert [entry.key for entry in source.entries()] == ["images/1.png", "images/0.png", "7"]
    assert [remark.count for remark in source.remarks()] == [2]


def test_row_whose_file_is_gone_or_unsure_is_a_bad_sample_until_it_is_there(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.png": "x",
            "b.png": "x",
            "b.jpg": "x",
            "t.csv": "image,text\na.png,1\ngone.png,2\nb,3\n,4\na.png,5\n",
        },
    )
    source = open_table(tmp_path / "t.csv")
    stamps = {entry.key: entry.stamp for entry in source.entries()}
    assert list(stamps) == ["a.png", "gone.png", "b", "line 5"]
    for index, reason in {
        1: "a file that doesn't exist$",
        2: "matches several files$",
        3: "names no file",
    }.items():
        with pytest.raises(SampleError, match=reason):
            source[index]
    assert [(remark.text, remark.count) for remark in source.remarks()] == [
        ("rows of a table not used, because an earlier row names the same file", 1)
    ]
    write(tmp_path, {"gone.png": "back"})
    again = open_table(tmp_path / "t.csv")
    assert again[1].read() == b"back"
    assert {entry.key: entry.stamp for entry in again.entries()}["gone.png"] != stamps["gone.png"]


def test_key_attributes_and_split_are_the_recipes(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"a.png": "x", "b.png": "y", "t.csv": "image,caption,id\na.png,1,k1\nb.png,2,k2\n"},
    )
    source = open_table(tmp_path / "t.csv", key="id", attributes=["caption"], split="train[1:]")
    assert [(entry.key, entry.attributes) for entry in source.entries()] == [
        ("k2", {"caption": "2"})
    ]
    assert "no column 'mood'" in find_error(tmp_path / "t.csv", attributes=["mood"])
    assert "split 'test'" in find_error(tmp_path / "t.csv", split="test")
    write(tmp_path, {"t.csv": "image,id\na.png,1\nb.png,1\n"})
    assert "the key '1' occurs twice" in find_error(tmp_path / "t.csv", key="id")


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "parquet"])
@pytest.mark.parametrize("streaming", [False, True])
def test_table_of_texts_is_not_read_whole(
    streaming: bool, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"text": f"a dog/cat of {number}, nice/ly done", "n": number} for number in range(30_000)
    ]
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(path_table, "read_table", lambda *_: pytest.fail("read whole"))
    asked: list[str] = []
    stamp = LocalFiles.stamp
    monkeypatch.setattr(
        LocalFiles, "stamp", lambda self, path: asked.append(path) or stamp(self, path)
    )
    config = DatasetsConfig(path=str(path), media="text", streaming=streaming)
    assert open_path_table(config, LocalFiles(tmp_path), path.name) is None
    assert len(asked) <= 10 * PROBED_ROWS


def test_table_whose_first_files_are_gone_is_a_table_of_paths(tmp_path: Path) -> None:
    lines = [
        json.dumps({"image": f"img/{number:05d}.png", "note": "x" * 900}) for number in range(3000)
    ]
    write(tmp_path, {"t.jsonl": "\n".join(lines), "img/02999.png": "there"})
    source = open_table(tmp_path / "t.jsonl")
    assert (len(source), source[2999].read()) == (3000, b"there")


def test_key_of_zero_is_a_key_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a.png", "id": 0},
        {"file_name": "b.png", "id": 1},
        {"file_name": "c.png", "id": False},
    ]
    write(
        tmp_path,
        {"a.png": "x", "b.png": "y", "c.png": "z", "t.jsonl": "\n".join(map(json.dumps, rows))},
    )
    assert [entry.key for entry in open_table(tmp_path / "t.jsonl", key="id").entries()] == [
        "0",
        "1",
        "False",
    ]
    for empty in ("", None):
        write(tmp_path, {"t.jsonl": json.dumps({"file_name": "a.png", "id": empty})})
        assert "line 1: no key in column 'id'" in find_error(
            tmp_path / "t.jsonl", key="id"
        )


@pytest.mark.parametrize("cell", ["gone/a.png", "https://example.org/a.png"])
def test_table_of_which_no_file_is_there_says_which_columns_it_looked_at(
    cell: str, tmp_path: Path
) -> None:
    write(tmp_path, {"t.csv": f"image,text\n{cell},x\n{cell}2.png,y\n"})
    error = find_error(tmp_path / "t.csv")
    assert "tried the columns image" in error
    assert "must be downloaded first" in error


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("t.jsonl", '{"image": "a.png"\n', "t.jsonl, line 1: not JSON"),
        ("t.csv", "", "t.csv, line 1: expected column names"),
        ("t.csv", "image,text\na.png,one, two\n", "t.csv, line 2: expected 2 columns"),
    ],
)
def test_table_that_cannot_be_read_is_named_with_its_line(
    name: str, text: str, part: str, tmp_path: Path
) -> None:
    write(tmp_path, {name: text, "a.png": "x"})
    assert part in find_error(tmp_path / name)


def test_line_that_cannot_be_read_is_counted(tmp_path: Path) -> None:
    write(tmp_path, {"t.csv": "image,text\na.png,one\nb.png,one, two\n", "a.png": "x"})
    source = open_table(tmp_path / "t.csv")
    assert (len(source), [remark.count for remark in source.remarks()]) == (1, [1])


def test_encode_of_a_table_reads_the_files_and_skips_those_that_are_gone(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (200, 80, 40 * number)).save(
            tmp_path / "images" / f"{number}.png"
        )
    write(tmp_path, {"train.csv": TABLE + "images/2.png,third,gone\n"})
    options = {"modality.with.size": 32, "source.with.media": "image_path", "preview": 0}
    lk.encode(tmp_path / "train.csv", tmp_path / "out", encoder="tiny-kl", overrides=options)
    data = lk.open(tmp_path / "out", columns=["text"])
    assert (data.keys, [data[index]["text"] for index in range(2)]) == (
        ["images/1.png", "images/0.png"],
        ["first", "second"],
    )
    shutil.copy(tmp_path / "images" / "0.png", tmp_path / "images" / "2.png")
    data = lk.encode(tmp_path / "train.csv", tmp_path / "out", encoder="tiny-kl", overrides=options)
    assert data.keys == ["images/1.png", "images/0.png", "images/2.png"]


def test_encode_of_a_folder_skips_a_caption_that_cannot_be_read_until_it_can(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (200, 80, 40)).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "a.txt").write_bytes(b"\xff\x81\xfe")
    options = {"modality.with.size": 32, "preview": 0}
    data = lk.encode(tmp_path / "photos", tmp_path / "out", encoder="tiny-kl", overrides=options)
    assert data.keys == ["b.png"]
    (tmp_path / "photos" / "a.txt").write_text("repaired")
    lk.encode(tmp_path / "photos", tmp_path / "out", encoder="tiny-kl", overrides=options)
    data = lk.open(tmp_path / "out", columns=["text"])
    assert (data.keys, data[0]["text"]) == (["a.png", "b.png"], "repaired")

"""Source `datasets`, by position: which formats open, which column is what, keys, stamps, and what
can't be opened.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from latentkit.contracts import BuildContext, Entry, Remark, Sample, Source
from latentkit.errors import SourceError
from latentkit.sources.columns import Columns
from latentkit.sources.dataset_rows import DatasetsSource
from latentkit.sources.datasets import open_datasets
from latentkit.sources.options import DatasetsConfig

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "text": datasets.Value("string"),
        "score": datasets.Value("float64"),
        "tags": datasets.List(datasets.Value("string")),
        "box": {"x": datasets.Value("int64")},
        "taken": datasets.Value("timestamp[s]"),
    }
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(file, format="PNG")
    return file.getvalue()


def make_table(levels: list[int]) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": make_png(level), "path": None} for level in levels],
        "label": [level % 2 for level in levels],
        "text": [f"picture {level}" for level in levels],
        "score": [level / 2 for level in levels],
        "tags": [["a", str(level)] for level in levels],
        "box": [{"x": level} for level in levels],
        "taken": [1_600_000_000 + level for level in levels],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def write_parquet(
    folder: Path, name: str = "photos.parquet", levels: tuple[int, ...] = (10, 11, 12)
) -> Path:
    folder.mkdir(exist_ok=True)
    make_table(list(levels)).to_parquet(folder / name)
    return folder / name


def write_tar(path: Path, names: list[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for level, name in enumerate(names):
            for suffix, content in (("png", make_png(level)), ("txt", f"text of {name}".encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def open_source(path: Path, **options: Any) -> DatasetsSource:
    source = open_datasets(DatasetsConfig(path=str(path), **options), BuildContext())
    assert isinstance(source, DatasetsSource)
    return source


def list_samples(source: DatasetsSource) -> list[Sample]:
    return [source[index] for index in range(len(source))]


def find_error(path: Path | str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        open_datasets(DatasetsConfig(path=str(path), **options), BuildContext())
    return str(caught.value)


def test_parquet_gives_undecoded_media_and_its_attributes(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "photos"))
    assert isinstance(source, Source)
    assert [sample.media for sample in list_samples(source)] == [
        make_png(10),
        make_png(11),
        make_png(12),
    ]
    assert [sample.key for sample in list_samples(source)] == ["00000000", "00000001", "00000002"]
    assert source[1].attributes == {
        "label": "dog",
        "text": "picture 11",
        "score": 5.5,
        "tags": ["a", "11"],
    }


@pytest.mark.parametrize(
    "options", [{}, {"key": "text"}, {"attributes": []}, {"attributes": ["tags"], "key": "text"}]
)
def test_entries_say_what_samples_say(options: dict[str, Any], tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "photos"), **options)
    assert list(source.entries()) == [
        Entry(sample.key, sample.stamp, sample.attributes) for sample in list_samples(source)
    ]


def test_chosen_columns_are_kept_and_nested_values_become_json(tmp_path: Path) -> None:
    source = open_source(
        write_parquet(tmp_path / "photos"), attributes=["box", "taken"], key="text"
    )
    assert source[2].attributes == {"box": '{"x": 12}', "taken": "2020-09-13 12:26:52"}
    assert source[2].key == "picture 12"


def make_json(folder: Path) -> Path:
    folder.mkdir()
    (folder / "texts.jsonl").write_text('{"text": "one", "n": 1}\n{"text": "two", "n": 2}\n')
    return folder


@pytest.mark.parametrize("name", ["", "texts.jsonl", "texts.ndjson", "texts.json"])
def test_texts_are_media_when_the_recipe_names_their_column(name: str, tmp_path: Path) -> None:
    folder = make_json(tmp_path / "texts")
    (folder / "texts.jsonl").rename(folder / (name or "texts.jsonl"))
    source = open_source(folder / name, media="text")
    assert [(sample.media, sample.attributes) for sample in list_samples(source)] == [
        ("one", {"n": 1}),
        ("two", {"n": 2}),
    ]


def test_image_folder_gives_paths_and_labels(tmp_path: Path) -> None:
    for name, level in (("cat/1.png", 1), ("dog/1.png", 2)):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(make_png(level))
    samples = list_samples(open_source(tmp_path / "photos"))
    assert [sample.media for sample in samples] == [
        tmp_path / "photos/cat/1.png",
        tmp_path / "photos/dog/1.png",
    ]
    assert [sample.attributes for sample in samples] == [{"label": "cat"}, {"label": "dog"}]


def test_webdataset_tar_gives_its_own_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ["x/1", "x/2"])
    source = open_datasets(DatasetsConfig(path=str(tmp_path / "a.tar")), BuildContext())
    assert isinstance(source, Source)
    assert [(sample.key, sample.media, sample.attributes) for sample in (source[0], source[1])] == [
        ("x/1", make_png(0), {"txt": "text of x/1", "text": "text of x/1"}),
        ("x/2", make_png(1), {"txt": "text of x/2", "text": "text of x/2"}),
    ]


def test_saved_data_set_is_read_in_place(tmp_path: Path) -> None:
    datasets.DatasetDict(train=make_table([1, 2, 3]), test=make_table([4])).save_to_disk(
        tmp_path / "both"
    )
    make_table([5]).save_to_disk(tmp_path / "one")
    assert [
        sample.media
        for sample in list_samples(open_source(tmp_path / "both", split="train[1:]+test"))
    ] == [
        make_png(2),
        make_png(3),
        make_png(4),
    ]
    assert open_source(tmp_path / "one")[0].media == make_png(5)
    assert not (tmp_path / "cache").exists()
    assert "Leave the option streaming out" in find_error(tmp_path / "one", streaming=True)


def test_split_can_be_a_slice(tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos", "train.parquet", (1, 2, 3))
    write_parquet(tmp_path / "photos", "test.parquet", (4, 5))
    assert [
        sample.media for sample in list_samples(open_source(tmp_path / "photos", split="test[1:]"))
    ] == [make_png(5)]


def test_empty_cell_is_a_sample_without_bytes(tmp_path: Path) -> None:
    features = datasets.Features({"photo": datasets.Value("binary"), "n": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"photo": [None, b"x"], "n": [None, 2]}, features=features)
    table.to_parquet(tmp_path / "a.parquet")
    assert [
        (sample.media, sample.attributes)
        for sample in list_samples(open_source(tmp_path / "a.parquet"))
    ] == [
        (b"", {"n": None}),
        (b"x", {"n": 2}),
    ]


def test_missing_labels_have_no_name(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "image": datasets.Value("binary"),
            "labels": datasets.List(FEATURES["label"]),
            "label": FEATURES["label"],
        }
    )
    table = datasets.Dataset.from_dict(
        {"image": [b"x", b"y"], "labels": [[0, 1], None], "label": [-1, None]}, features=features
    )
    table.to_parquet(tmp_path / "a.parquet")
    assert [entry.attributes for entry in open_source(tmp_path / "a.parquet").entries()] == [
        {"labels": ["cat", "dog"], "label": None},
        {"labels": None, "label": None},
    ]


# ---------------------------------------------------------------- stamps, pickling, threads

PROGRAM = """
import sys
from latentkit.sources.options import DatasetsConfig
from latentkit.contracts import BuildContext
from latentkit.sources.datasets import open_datasets
print([entry.stamp for entry in open_datasets(DatasetsConfig(path=sys.argv[1]), BuildContext()).entries()])
"""


def test_stamps_are_the_same_in_another_process_with_another_cache(tmp_path: Path) -> None:
    file = write_parquet(tmp_path / "photos")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "other"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(file)]
    answer = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment
    ).stdout
    assert answer.strip() == str([entry.stamp for entry in open_source(file).entries()])


@pytest.mark.parametrize("saved", [False, True])
def test_stamps_change_when_the_file_does(saved: bool, tmp_path: Path) -> None:
    def write(level: int) -> Path:
        if saved:
            make_table([level]).save_to_disk(tmp_path / "saved")
            return tmp_path / "saved"
        return write_parquet(tmp_path / "photos", levels=(level,))

    stamps = [
        [sample.stamp for sample in list_samples(open_source(write(level)))] for level in (1, 2)
    ]
    assert stamps[0] != stamps[1]


def test_source_outlives_pickling_and_threads(tmp_path: Path) -> None:
    source = open_source(write_parquet(tmp_path / "photos", levels=tuple(range(40))))
    again = pickle.loads(pickle.dumps(source))
    assert list(again.entries()) == list(source.entries())
    with ThreadPoolExecutor(8) as threads:
        media = list(threads.map(lambda index: again[index].media, range(40)))
    assert media == [make_png(level) for level in range(40)]


# ---------------------------------------------------------------- what can't be opened


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (
            {"media": "photo"},
            [
                "media: the column 'photo' is not there",
                "image (Image)",
                "label (ClassLabel)",
                "tags (list of string)",
            ],
        ),
        ({"media": "label"}, ["the column 'label' contains neither media nor text"]),
        ({"attributes": ["text", "caption"]}, ["attributes: the column 'caption' is not there"]),
        ({"attributes": ["image"]}, ["the column 'image' contains media"]),
        ({"key": "id"}, ["no column 'id' for the key"]),
        ({"key": "score"}, ["key column 'score' must contain texts or whole numbers, not double"]),
        (
            {"key": "label"},
            ["the key '0' occurs 2 times in column 'label'", "name another column"],
        ),
        ({"split": "validation"}, ["split 'validation'", "train"]),
        ({"split": "train[:"}, ["train[:"]),
        ({"name": "other"}, ["'other' not found"]),
    ],
)
def test_recipe_that_does_not_fit_the_columns_is_told_so(
    options: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "photos")
    error = find_error(tmp_path / "photos", **options)
    assert [part for part in parts if part not in error] == []


def test_media_column_must_be_the_only_one(tmp_path: Path) -> None:
    assert "no column contains images, audio, video or bytes" in find_error(
        make_json(tmp_path / "texts")
    )
    table = datasets.Dataset.from_dict({"photo": [b"x"], "mask": [b"y"], "n": [1]})
    table.to_parquet(tmp_path / "two.parquet")
    assert "several columns contain media (photo, mask); name one in source.with.media" in find_error(
        tmp_path / "two.parquet"
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["a.parquet", "a.tar", "a.arrow", "a.json", "a.xyz"])
def test_file_that_is_not_what_it_seems_is_named(
    name: str, streaming: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\x00nonsense\xff" * 300)
    assert str(tmp_path / name) in find_error(tmp_path / name, streaming=streaming, media="image")


def test_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'gone'} does not exist" in find_error(tmp_path / "gone")
    assert str(tmp_path / "empty") in find_error(tmp_path / "empty")
    assert "not a hub id" in find_error("a b/*.tar")


def test_data_set_without_rows_is_refused(tmp_path: Path) -> None:
    assert "no data" in find_error(write_parquet(tmp_path / "photos"), split="train[:0]")
    table = make_table([1]).select([])
    with pytest.raises(SourceError, match="no rows"):
        DatasetsSource(table, Columns("image", None, {}), "fingerprint")


@pytest.mark.parametrize("saved", [False, True])
def test_rows_of_other_splits_are_counted(saved: bool, tmp_path: Path) -> None:
    tables = {"train": make_table([0, 1]), "test": make_table([2, 3, 4])}
    if saved:
        datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        for name, table in tables.items():
            table.to_parquet(str(tmp_path / "data" / f"{name}.parquet"))
    config = DatasetsConfig(path=str(tmp_path / "data"), attributes=["text"])
    source = open_datasets(config, BuildContext())
    text = "rows of the split test, not read; source.with.split=test takes them"
    assert isinstance(source, DatasetsSource)
    assert list(source.remarks()) == [Remark(text, 3)]


@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_the_library_takes_for_no_data_are_counted(
    streaming: bool, tmp_path: Path
) -> None:
    for name in ("train-00.parquet", "extra.parquet", "other/0.parquet"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        make_table([0, 1]).to_parquet(str(tmp_path / "data" / name))
    (tmp_path / "data" / "README.md").write_text("---\nlicense: mit\n---\n")
    options: dict[str, Any] = {"attributes": ["text"], "streaming": streaming}
    config = DatasetsConfig(path=str(tmp_path / "data"), **options)
    source = open_datasets(config, BuildContext())
    assert list(source.remarks()) == [
        Remark("files beside those of the data, not read", 2, "extra.parquet")
    ]
    config = DatasetsConfig(path=str(tmp_path / "data" / "*.parquet"), **options)
    assert list(open_datasets(config, BuildContext()).remarks()) == []


@pytest.mark.parametrize("kind", ["parquet", "saved", "stream"])
def test_columns_that_are_not_read_are_named(kind: str, tmp_path: Path) -> None:
    table = make_table([0, 1])
    table = table.add_column("mask", [b"x", b"y"], feature=datasets.Value("binary"))
    if kind == "saved":
        table.save_to_disk(str(tmp_path / "data"))
    else:
        (tmp_path / "data").mkdir()
        table.to_parquet(str(tmp_path / "data" / "train.parquet"))
    options: dict[str, Any] = {"path": str(tmp_path / "data"), "media": "image"}
    config = DatasetsConfig(**options, streaming=kind == "stream")
    assert list(open_datasets(config, BuildContext()).remarks()) == [
        Remark("columns with other media, not read", 1, "mask"),
        Remark(
            "columns that aren't texts, numbers, labels or lists of them, not read unless"
            " source.with.attributes names them",
            2,
            "box, taken",
        ),
    ]
    chosen = open_source(tmp_path / "data", media="image", attributes=["text", "box", "taken"])
    assert list(chosen.remarks()) == []
    assert chosen[1].attributes["box"] == '{"x": 1}'

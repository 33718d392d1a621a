"""Tars of samples as people's tools write them: what is read, under which keys, and what is said of
the rest.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

import latentkit as lk
from latentkit.builtin.plugins import latentkit_sources
from latentkit.contracts import BuildContext, Entry, Sample, Source, StreamSource
from latentkit.errors import SampleError, SourceError
from latentkit.runtime.source_remarks import read_remarks
from latentkit.sources import endings
from latentkit.sources.datasets import open_datasets
from latentkit.sources.files import LocalFiles
from latentkit.sources.options import DatasetsConfig
from latentkit.sources.shards import split_name
from latentkit.sources.splits import split_files
from latentkit.sources.tars import Member, Tar, list_members
from latentkit.sources.webdataset import TarSource, TarStream
from latentkit.testing import SourceContract, StreamSourceContract

Content = bytes | str | dict[str, Any]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def tar_of(files: Iterable[tuple[str, Content]]) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as tar:
        for name, content in files:
            data = (
                json.dumps(content).encode()
                if isinstance(content, dict)
                else content.encode() if isinstance(content, str) else content
            )
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return memory.getvalue()


def write_tar(path: Path, files: Iterable[tuple[str, Content]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_of(files))
    return path


def open_tars(
    path: Path | str | list[str], base: Path | None = None, modality: str = "image", **options: Any
) -> TarSource:
    config = DatasetsConfig(path=path if isinstance(path, list) else str(path), **options)
    source = open_datasets(config, BuildContext(recipe_dir=base or Path(), modality=modality))
    assert isinstance(source, TarSource)
    assert isinstance(source, Source)
    return source


def open_stream(path: Path | str, **options: Any) -> TarStream:
    stream = open_datasets(
        DatasetsConfig(path=str(path), streaming=True, **options), BuildContext(modality="image")
    )
    assert isinstance(stream, TarStream)
    assert isinstance(stream, StreamSource)
    return stream


def list_samples(source: TarSource) -> list[Sample]:
    samples = [source[index] for index in range(len(source))]
    assert list(source.entries()) == [
        Entry(sample.key, sample.stamp, sample.attributes) for sample in samples
    ]
    return samples


def read_stream(stream: TarStream) -> list[Sample]:
    return [sample for shard in stream.shards() for sample in stream.read(shard)]


def remarks(source: TarSource | TarStream) -> dict[str, tuple[int, str]]:
    return {remark.text: (remark.count, remark.example) for remark in source.remarks()}


def find_error(path: Path | str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        open_tars(path, **options)
    return str(caught.value)


SPEC = next(spec for spec in latentkit_sources() if spec.name == "datasets")


class TestTarContract(SourceContract):
    spec = SPEC

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        write_tar(
            tmp_path / "wds" / "0.tar",
            [("a.jpg", "a"), ("a.txt", "of a"), ("b.png", "b"), ("b.json", {"n": 1})],
        )
        write_tar(tmp_path / "wds" / "1.tar", [("c.jpg", "c")])
        return DatasetsConfig(path=str(tmp_path / "wds"))


class TestTarStreamContract(StreamSourceContract):
    spec = SPEC

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        for number in range(3):
            write_tar(
                tmp_path / "wds" / f"{number}.tar",
                [("a.jpg", f"a{number}"), ("a.txt", "of a"), ("b.png", "b")],
            )
        return DatasetsConfig(path=str(tmp_path / "wds"), streaming=True)


# ---------------------------------------------------------------- what is in a tar


def test_tar_of_the_library_webdataset_is_read_as_it_was_written(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            content = {
                "jpg": bytes([number]) * 700,
                "txt": f"caption {number}",
                "cls": number,
                "json": {"n": number},
            }
            writer.write({"__key__": f"folder/{number:05d}", **content})
    samples = list_samples(open_tars(tmp_path / "a.tar"))
    assert [sample.key for sample in samples] == [f"folder/{number:05d}" for number in range(3)]
    assert [sample.media for sample in samples] == [bytes([number]) * 700 for number in range(3)]
    assert samples[2].attributes == {"text": "caption 2", "txt": "caption 2", "cls": 2, "n": 2}


@pytest.mark.parametrize("streaming", [False, True])
def test_kinds_and_fields_may_change_from_sample_to_sample(streaming: bool, tmp_path: Path) -> None:
    endings = ["jpg", "jpg", "jpg", "jpg", "jpg", "jpg", "png", "webp", "JPG"]
    files: list[tuple[str, Content]] = []
    for number, ending in enumerate(endings):
        files.append((f"{number}.{ending}", f"media {number}"))
        if number:
            files.append(
                (
                    f"{number}.json",
                    {
                        "caption": f"caption {number}",
                        "note": None if number < 7 else "late",
                        "n": number,
                    },
                )
            )
        if number == 8:
            files.append((f"{number}.cls", "7"))
    write_tar(tmp_path / "a.tar", files)
    samples = (
        read_stream(open_stream(tmp_path / "a.tar"))
        if streaming
        else list_samples(open_tars(tmp_path / "a.tar"))
    )
    assert [sample.media for sample in samples] == [
        f"media {number}".encode() for number in range(9)
    ]
    assert [sample.attributes.get("text") for sample in samples] == [
        None,
        *(f"caption {number}" for number in range(1, 9)),
    ]
    assert samples[0].attributes == {}
    assert samples[8].attributes == {"text": "caption 8", "note": "late", "n": 8, "cls": 7}
    assert samples[1].attributes == {"text": "caption 1", "note": None, "n": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("f/g.h/a.JPG", ("f/g.h/a", "jpg")),
        ("Track 8.0.jpg", ("Track 8.0", "jpg")),
        ("Mr. Smith.jpg", ("Mr. Smith", "jpg")),
        ("v1.2.3.left.png", ("v1.2.3", "left.png")),
        ("a.left.png", ("a", "left.png")),
        ("a.nii.gz", ("a", "nii.gz")),
        ("a.mp4", ("a", "mp4")),
        ("2024.01.01.txt", ("2024.01.01", "txt")),
        ("a", None),
        ("folder.x/a", None),
    ],
)
def test_name_is_parted_into_key_and_field(name: str, expected: tuple[str, str] | None) -> None:
    assert split_name(name) == expected


def test_names_with_dots_and_folders_and_a_leading_dot_slash_are_samples_of_their_own(
    tmp_path: Path,
) -> None:
    keys = ["x/Track 8.0", "x/Track 8.1", "y/0", "0"]
    write_tar(
        tmp_path / "a.tar",
        [(f"./{key}.{ending}", f"{ending} of {key}") for key in keys for ending in ("jpg", "txt")],
    )
    samples = list_samples(open_tars(tmp_path / "a.tar"))
    assert [(sample.key, sample.media) for sample in samples] == [
        (key, f"jpg of {key}".encode()) for key in keys
    ]
    assert [sample.attributes["text"] for sample in samples] == [f"txt of {key}" for key in keys]


def test_files_of_a_sample_need_not_follow_each_other(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar", [("0.jpg", "a"), ("1.jpg", "b"), ("0.txt", "of a"), ("1.txt", "of b")]
    )
    assert [
        sample.attributes["text"] for sample in list_samples(open_tars(tmp_path / "a.tar"))
    ] == ["of a", "of b"]


def test_name_that_is_there_again_is_another_sample_and_remarked(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [(name, f"{name} {time}") for time in range(3) for name in ("0.jpg", "0.txt")],
    )
    source = open_tars(tmp_path / "a.tar")
    assert [
        (sample.key, sample.media, sample.attributes["text"]) for sample in list_samples(source)
    ] == [
        ("0", b"0.jpg 0", "0.txt 0"),
        ("0#2", b"0.jpg 1", "0.txt 1"),
        ("0#3", b"0.jpg 2", "0.txt 2"),
    ]
    assert remarks(source) == {
        "samples of a name that their tar has already, kept as name#2 and so on": (2, "0#2")
    }


@pytest.mark.parametrize(
    "order",
    [
        "a#2.jpg a.jpg a.jpg",
        "a.jpg a.jpg a#2.jpg",
        "a.jpg a#2.jpg a.jpg a.jpg",
        "a.jpg a.jpg a#2.txt",
    ],
)
def test_name_that_looks_like_a_repeated_one_keeps_its_files_to_itself(
    order: str, tmp_path: Path
) -> None:
    names = order.split()
    write_tar(tmp_path / "a.tar", [(name, f"{name} {number}") for number, name in enumerate(names)])
    samples = list_samples(open_tars(tmp_path / "a.tar"))
    pictures = [
        f"{name} {number}".encode() for number, name in enumerate(names) if name.endswith(".jpg")
    ]
    assert sorted(sample.media for sample in samples) == sorted(pictures)
    assert len({sample.key for sample in samples}) == len(samples)
    assert [sample.attributes for sample in samples] == [{}] * len(samples)


@pytest.mark.parametrize("ending", ["a\nb", "a\rb", "a\u2028b", "a\x85b"])
def test_line_break_in_a_name_is_one_line_in_a_remark(ending: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", "x"), (f"0.{ending}", "y"), (f"x{ending}", "z")])
    found = read_remarks(open_tars(tmp_path / "a.tar"))
    assert len(found) == 2
    assert all(str(remark).splitlines() == [str(remark)] for remark in found)


def test_key_that_is_null_is_the_name_of_the_sample(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [("a.jpg", "x"), ("a.json", {"id": 0}), ("b.jpg", "x"), ("b.json", {"id": None})],
    )
    assert [sample.key for sample in list_samples(open_tars(tmp_path / "a.tar", key="id"))] == [
        "0",
        "b",
    ]


def test_hidden_files_and_folders_in_a_tar_are_no_samples(tmp_path: Path) -> None:
    names = ["0.jpg", "._0.jpg", "x/.DS_Store", "__meta__.json", "PaxHeaders.1/0.jpg"]
    write_tar(tmp_path / "a.tar", [(name, "x") for name in names])
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        folder = tarfile.TarInfo("x.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    source = open_tars(tmp_path / "a.tar")
    assert ([sample.key for sample in list_samples(source)], remarks(source)) == (["0"], {})


# ---------------------------------------------------------------- which file is the media

SOUNDS_AND_PICTURES: list[tuple[str, Content]] = [
    ("0.jpg", "picture"),
    ("0.wav", "sound"),
    ("0.txt", "text"),
    ("1.wav", "sound alone"),
]


def test_modality_decides_which_of_several_files_is_the_media(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", SOUNDS_AND_PICTURES)
    source = open_tars(tmp_path / "a.tar")
    assert [sample.media for sample in list_samples(source)] == [b"picture"]
    assert remarks(source) == {
        "files in tars, not used: .wav": (2, "0.wav"),
        "samples in tars that have no media of the kind that is read, left out": (1, "1"),
    }
    assert [
        sample.media for sample in list_samples(open_tars(tmp_path / "a.tar", media="wav"))
    ] == [b"sound", b"sound alone"]
    assert [
        sample.media for sample in list_samples(open_tars(tmp_path / "a.tar", media="txt"))
    ] == ["text"]


def test_plain_ending_wins_over_a_longer_one_and_two_plain_ones_ask_for_a_choice(
    tmp_path: Path,
) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", "x"), ("0.mask.png", "m")])
    assert open_tars(tmp_path / "a.tar")[0].media == b"x"
    assert open_tars(tmp_path / "a.tar", media="mask.png")[0].media == b"m"
    write_tar(tmp_path / "b.tar", [("0.jpg", "x"), ("0.png", "m")])
    assert (
        "the sample '0' has several media files: jpg, png; name the ending of one" in find_error(
            tmp_path / "b.tar"
        )
    )


SEVERAL = "it has several media files: jpg, png; name the ending of one in source.with.media"


def test_sample_with_several_media_is_a_bad_sample_and_the_others_are_read(tmp_path: Path) -> None:
    files = ["a.jpg", "a.png", "a.txt", "b.jpg", "c.png"]
    write_tar(tmp_path / "a.tar", [(name, name) for name in files])
    source = open_tars(tmp_path / "a.tar")
    with pytest.raises(SampleError, match=SEVERAL):
        source[0]
    assert [source[index].media for index in (1, 2)] == [b"b.jpg", b"c.png"]
    assert [entry.key for entry in source.entries()] == ["a", "b", "c"]
    assert remarks(source) == {}
    named = open_tars(tmp_path / "a.tar", media="jpg")
    assert [sample.media for sample in list_samples(named)] == [b"a.jpg", b"b.jpg"]
    # The stamp differs, so the sample is tried again once the recipe names its media.
    assert next(iter(named.entries())).stamp != next(iter(source.entries())).stamp
    bad, *good = read_stream(open_stream(tmp_path / "a.tar"))
    assert [sample.media for sample in good] == [b"b.jpg", b"c.png"]
    with pytest.raises(SampleError, match=SEVERAL):
        bad.read()


def test_ending_that_every_sample_has_is_taken_and_the_other_is_remarked(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b.png", "b.jpg", "c.jpg"]
    write_tar(tmp_path / "a.tar", [(name, name) for name in names])
    source, stream = open_tars(tmp_path / "a.tar"), open_stream(tmp_path / "a.tar")
    for samples in (list_samples(source), read_stream(stream)):
        assert [sample.media for sample in samples] == [b"a.jpg", b"b.jpg", b"c.jpg"]
    assert remarks(source) == remarks(stream) == {"files in tars, not used: .png": (2, "a.png")}


def test_mask_is_no_media_of_a_sample_that_lacks_its_picture(tmp_path: Path) -> None:
    names = ["a.jpg", "a.mask.png", "b.mask.png", "c.holiday.png"]
    write_tar(tmp_path / "a.tar", [(name, name) for name in names])
    source = open_tars(tmp_path / "a.tar")
    assert [sample.media for sample in list_samples(source)] == [b"a.jpg", b"c.holiday.png"]
    assert remarks(source) == {
        "files in tars, not used: .mask.png": (2, "a.mask.png"),
        "samples in tars that have no media of the kind that is read, left out": (1, "b"),
    }


def test_first_tars_decide_which_media_a_stream_reads(tmp_path: Path) -> None:
    write_tar(tmp_path / "wds" / "a.tar", [("0.txt", "no picture")])
    write_tar(tmp_path / "wds" / "b.tar", [("0.jpg", "x"), ("0.png", "m"), ("1.jpg", "y")])
    write_tar(tmp_path / "wds" / "c.tar", [("0.png", "m"), ("0.jpg", "z"), ("1.png", "w")])
    samples = read_stream(open_stream(tmp_path / "wds"))
    assert [sample.media for sample in samples] == [b"x", b"y", b"z", b"w"]


@pytest.mark.parametrize("streaming", [False, True])
def test_caption_in_json_that_differs_from_the_text_is_remarked(
    streaming: bool, tmp_path: Path
) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            *(("0.jpg", "x"), ("0.txt", "short"), ("0.json", {"caption": "long", "n": 1})),
            *(("1.jpg", "x"), ("1.txt", "same"), ("1.json", {"caption": "same", "n": 2})),
        ],
    )
    opened = open_stream if streaming else open_tars
    source = opened(tmp_path / "a.tar")
    samples = read_stream(source) if isinstance(source, TarStream) else list_samples(source)
    assert samples[0].attributes == {"text": "short", "txt": "short", "n": 1}
    text = (
        "samples whose .json has another caption than their text file, which is used;"
        " source.with.attributes=[text, json] keeps both"
    )
    assert remarks(source) == {text: (1, "a.tar/0" if streaming else "0")}
    both = open_tars(tmp_path / "a.tar", attributes=["text", "json"])[0].attributes
    assert both == {"text": "short", "json": '{"caption": "long", "n": 1}'}


def test_tars_without_media_say_what_they_hold(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.xyz", "x"), ("0.txt", "t")])
    error = find_error(tmp_path / "a.tar")
    assert "no file in the tars has an ending of .jpg" in error
    assert "endings there: xyz (1), txt (1)" in error
    write_tar(tmp_path / "b.tar", [("0", "x"), ("1", "y")])
    assert "2 files without an ending" in find_error(tmp_path / "b.tar")


def test_tars_of_another_media_name_the_package_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", [("0.flac", "x"), ("0.txt", "t")])
    monkeypatch.setattr(endings, "discover", lambda: SimpleNamespace(rows=list))
    assert "pip install latentkit-audio" in find_error(tmp_path / "a.tar")


def test_tars_of_other_splits_are_counted(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["train/0.tar", "val/0.tar", "val/1.tar"])
    text = "tars of the split validation, not read; source.with.split=validation takes them"
    assert remarks(open_tars(tmp_path / "wds")) == {text: (2, "")}
    assert remarks(open_tars(tmp_path / "wds", split="train+validation")) == {}


def test_recipe_chooses_attributes_and_key(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            ("0.jpg", "x"),
            ("0.json", {"caption": "c", "key": "k0", "box": [1, 2], "deep": {"x": 1}}),
        ],
    )
    [sample] = list_samples(open_tars(tmp_path / "a.tar"))
    assert sample.attributes == {"text": "c", "key": "k0", "box": [1, 2], "deep": '{"x": 1}'}
    [sample] = list_samples(open_tars(tmp_path / "a.tar", attributes=["text", "json"], key="key"))
    assert (sample.key, set(sample.attributes), json.loads(sample.attributes["json"])["deep"]) == (
        "k0",
        {"text", "json"},
        {"x": 1},
    )
    write_tar(tmp_path / "b.tar", [("0.jpg", "x"), ("0.txt", "t")])
    assert "the column 'caption' is not there" in find_error(
        tmp_path / "b.tar", attributes=["caption"]
    )
    assert ".jpg contains media" in find_error(tmp_path / "b.tar", attributes=["jpg"])


def test_text_that_cannot_be_read_makes_a_bad_sample(tmp_path: Path) -> None:
    texts = {"0.txt": b"\xff\x81\xfe", "1.json": b"{", "2.txt": "Käfer".encode("cp1252")}
    source = open_tars(
        write_tar(
            tmp_path / "a.tar", [("0.jpg", b"x"), ("1.jpg", b"y"), ("2.jpg", b"z"), *texts.items()]
        )
    )
    for index, reason in enumerate(
        [r"its \.txt can't be read: not UTF-8", r"its \.json is not JSON"]
    ):
        with pytest.raises(SampleError, match=reason):
            source[index]
    assert source[2].attributes["text"] == "Käfer"
    assert [entry.key for entry in source.entries()] == ["0", "1", "2"]
    assert remarks(source) == {"read as cp1252, not UTF-8": (1, "")}
    bad, worse, good = read_stream(open_stream(tmp_path / "a.tar"))
    assert good.read() == b"z"
    for sample in (bad, worse):
        with pytest.raises(SampleError, match="its "):
            sample.content()


# ---------------------------------------------------------------- many tars


def fill(folder: Path, names: Iterable[str]) -> Path:
    for name in names:
        write_tar(folder / name, [(f"{name.partition('.')[0]}.jpg", f"of {name}")])
    return folder


def test_tars_win_over_what_img2dataset_writes_beside_them(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["00000.tar", "00001.tar"])
    for name in ("00000", "00001"):
        pq.write_table(
            pa.table({"url": ["http://example.org"], "key": [name]}),
            tmp_path / "wds" / f"{name}.parquet",
        )
        (tmp_path / "wds" / f"{name}_stats.json").write_text("{}")
    source = open_tars(tmp_path / "wds")
    assert [sample.media for sample in list_samples(source)] == [b"of 00000.tar", b"of 00001.tar"]
    assert remarks(source) == {"other files than tars, not read": (4, "00000.parquet")}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("wds/*.tar", ["0", "1", "2"]),
        ("wds/{0..1}.tar", ["0", "1"]),
        ("wds/{2,0}.tar", ["2", "0"]),
        ("wds/1.tar::wds/0.tar", ["1", "0"]),
        (["wds/2.tar", "wds/{0..1}.tar"], ["2", "0", "1"]),
        ("**/[02].tar", ["0", "2"]),
    ],
)
def test_patterns_braces_and_lists_name_tars(
    pattern: str | list[str], expected: list[str], tmp_path: Path
) -> None:
    fill(tmp_path / "wds", ["0.tar", "1.tar", "2.tar"])
    assert [sample.key for sample in list_samples(open_tars(pattern, tmp_path))] == expected


def test_pattern_that_fits_nothing_or_several_kinds_is_named(tmp_path: Path) -> None:
    fill(tmp_path, ["00.tar"])
    (tmp_path / "a.parquet").touch()
    assert "no file matches 'wds/01.tar'" in find_error("wds/{01..02}.tar")
    assert "expected files of one kind, got tar (1), .parquet (1)" in find_error(
        str(tmp_path / "*"), split="train"
    )


def test_pattern_of_tables_is_read_by_the_library(tmp_path: Path) -> None:
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"photo": pa.array([name.encode()], pa.binary())}),
            tmp_path / f"{name}.parquet",
        )
    source = open_datasets(DatasetsConfig(path="*.parquet"), BuildContext(recipe_dir=tmp_path))
    assert isinstance(source, Source)
    assert [source[index].media for index in range(2)] == [b"a", b"b"]


def test_key_that_an_earlier_tar_uses_stands_behind_the_name_of_its_tar_and_a_later_tar_renames_none(
    tmp_path: Path,
) -> None:
    files = {
        "a/0.tar": ["0.jpg", "1.jpg"],
        "b/0.tar": ["1.jpg", "2.jpg"],
        "c.tar": ["b/0.tar/1.jpg", "0.jpg", "2.jpg"],
    }
    expected = ["0", "1", "b/0.tar/1", "2", "c.tar/b/0.tar/1", "c.tar/0", "c.tar/2"]
    keys: list[str] = []
    for name, names in files.items():
        write_tar(tmp_path / "wds" / name, [(one, f"{name} {one}") for one in names])
        samples = list_samples(open_tars(tmp_path / "wds"))
        assert [sample.key for sample in samples][: len(keys)] == keys
        keys = [sample.key for sample in samples]
    assert keys == expected
    assert [sample.media.decode() for sample in samples] == [
        f"{name} {one}" for name, names in files.items() for one in names
    ]


def test_split_names_tars_and_slices_count_samples(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["train-0.tar", "train-1.tar", "train-2.tar", "test-0.tar"])
    assert [sample.key for sample in list_samples(open_tars(tmp_path / "wds"))] == [
        "train-0",
        "train-1",
        "train-2",
    ]
    chosen = open_tars(tmp_path / "wds", split="test+train[1:]")
    assert [sample.key for sample in list_samples(chosen)] == ["test-0", "train-1", "train-2"]
    assert "has no split 'validation'; it has test, train" in find_error(
        tmp_path / "wds", split="validation"
    )
    assert [shard.name for shard in open_stream(tmp_path / "wds", split="test").shards()] == [
        "test-0.tar"
    ]
    assert "no data" in find_error(tmp_path / "wds", split="train[:0]")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *(
            ("train-0.tar", "train"),
            ("a/val/0.tar", "validation"),
            ("x_test.tar", "test"),
            ("eval.0.tar", "test"),
            ("0.tar", "train"),
        ),
        *(
            ("training/0.tar", "train"),
            ("latest/0.tar", "train"),
            ("strain-0.tar", "train"),
            ("train/dev-1.tar", "validation"),
        ),
    ],
)
def test_split_of_a_file_is_the_last_word_for_one_in_its_path(name: str, split: str) -> None:
    assert split_files([name]) == {split: [name]}


def test_linked_tars_and_folders_of_them_are_read(tmp_path: Path) -> None:
    fill(tmp_path / "far", ["0.tar", "sub/1.tar"])
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "0.tar").symlink_to(tmp_path / "far" / "0.tar")
    (tmp_path / "wds" / "more").symlink_to(tmp_path / "far" / "sub")
    assert [sample.media for sample in list_samples(open_tars(tmp_path / "wds"))] == [
        b"of 0.tar",
        b"of sub/1.tar",
    ]


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.bz2", "a.tar.xz", "a.tar"])
def test_compressed_tars_are_read_whatever_they_are_called(name: str, tmp_path: Path) -> None:
    pack = {"bz2": bz2.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], gzip.compress)
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / name).write_bytes(
        pack(tar_of([("0.jpg", "x"), ("0.txt", "t"), ("1.jpg", "y")]))
    )
    source = open_tars(tmp_path / "wds")
    assert [(sample.media, sample.attributes.get("text")) for sample in list_samples(source)] == [
        (b"x", "t"),
        (b"y", None),
    ]
    assert [sample.media for sample in list_samples(open_tars(tmp_path / "wds"))] == [b"x", b"y"]
    assert len(list((tmp_path / "cache" / "latentkit-tars").iterdir())) == 1


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_files_are_where_the_standard_library_finds_them(form: int, tmp_path: Path) -> None:
    names = ["a.jpg", f"{'folder/' * 20}b.jpg", "zoë/ü.jpg", "x y.jpg"] + (
        [f"{'n' * 300}.jpg"] if form != tarfile.USTAR_FORMAT else []
    )
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 300 * number, 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(member, io.BytesIO(bytes([number]) * member.size))
            link = tarfile.TarInfo(f"{name}.link")
            link.type, link.linkname = tarfile.SYMTYPE, "m" * (
                99 + 200 * (form != tarfile.USTAR_FORMAT)
            )
            tar.addfile(link)
    tar = Tar(LocalFiles(tmp_path), "a.tar")
    members, damage = list_members(tar)
    with tarfile.open(tmp_path / "a.tar") as opened:
        expected = [Member(one.name, one.offset_data, one.size) for one in opened if one.isreg()]
    assert (members, damage) == (expected, "")
    assert [member.name for member in members] == names


def test_tar_with_sparse_files_or_settings_for_all_is_read_by_the_standard_library(
    tmp_path: Path,
) -> None:
    with tarfile.open(
        tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "for all"}
    ) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"media"))
    assert [sample.media for sample in list_samples(open_tars(tmp_path / "a.tar"))] == [b"media"]


@pytest.mark.parametrize("byte", [0, 0x80, 0xFF, ord("7"), ord("-")])
def test_damage_of_any_byte_of_a_header_is_a_remark_never_a_crash(
    byte: int, tmp_path: Path
) -> None:
    with webdataset.TarWriter(
        str(tmp_path / "whole.tar")
    ) as writer:  # with a pax header before each file
        writer.write({"__key__": "a" * 120, "jpg": b"x", "txt": "t"})
    whole = (tmp_path / "whole.tar").read_bytes()
    tar = Tar(LocalFiles(tmp_path), "a.tar")
    for position in [*range(512, 600), *range(600, 1536, 23)]:
        content = bytearray(whole)
        content[position] = byte
        (tmp_path / "a.tar").write_bytes(content)
        members, damage = list_members(tar)
        assert len(members) == 2 or damage


def test_tar_damaged_in_the_middle_is_read_up_to_there(tmp_path: Path) -> None:
    content = bytearray(tar_of([(f"{number}.jpg", f"media {number}") for number in range(3)]))
    content[1024 + 5] ^= 1  # in the second header
    (tmp_path / "a.tar").write_bytes(content)
    source = open_tars(tmp_path / "a.tar")
    assert [sample.media for sample in list_samples(source)] == [b"media 0"]
    assert remarks(source) == {
        "damaged tars, read as far as they go": (1, "a.tar: damaged: bad checksum")
    }


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("packed", [False, True])
def test_tar_that_is_cut_off_is_read_as_far_as_it_goes_and_named(
    packed: bool, tmp_path: Path
) -> None:
    whole = tar_of(
        [(f"{number}.jpg", bytes([number]) * 700) for number in range(4)]
    )  # 1536 bytes each, with its header
    fill(tmp_path / "wds", ["b.tar"])
    for cut in range(0, 6145, 512):
        content = gzip.compress(whole)[: cut // 80 + 30] if packed else whole[:cut]
        (tmp_path / "wds" / "a.tar").write_bytes(content)
        source = open_tars(tmp_path / "wds")
        samples = []
        for index in range(len(source)):
            try:
                samples.append(source[index].media)
            except SampleError as err:
                assert "its tar is cut off in .jpg" in str(err)  # noqa: PT017
        known = [bytes([number]) * 700 for number in range(4)]
        assert samples == [*known[: len(samples) - 1], b"of b.tar"]
        if not packed:
            assert (
                len(samples) - 1 == (cut + 324) // 1536
            )  # a file ends 324 bytes before its last block
        assert remarks(source)["damaged tars, read as far as they go"][0] == 1


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("place", ["flipped", "cut"])
def test_damaged_packed_tar_is_read_as_far_as_it_goes(
    pack: Any, place: str, tmp_path: Path
) -> None:
    noise = random.Random(3)
    pictures = [noise.randbytes(3000) for _ in range(400)]
    content = bytearray(
        pack(tar_of((f"{number:03d}.jpg", picture) for number, picture in enumerate(pictures)))
    )
    if place == "flipped":
        content[len(content) - 5000] ^= 255
    (tmp_path / "a.tar").write_bytes(content if place == "flipped" else content[:-5000])
    source = open_tars(tmp_path / "a.tar")
    assert 90 < len(source) <= 400
    assert [source[index].media for index in range(0, 90, 30)] == pictures[:90:30]
    for one in (source, open_tars(tmp_path / "a.tar")):  # the second finds it unpacked
        assert remarks(one)["damaged tars, read as far as they go"][0] == 1


def test_empty_or_foreign_tar_among_others_is_named_and_alone_it_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["c.tar"])
    write_tar(tmp_path / "wds" / "a.tar", [])
    (tmp_path / "wds" / "b.tar").write_bytes(b"nonsense" * 300)
    source = open_tars(tmp_path / "wds")
    assert [sample.key for sample in list_samples(source)] == ["c"]
    assert remarks(source)["tars without any sample"] == (1, "a.tar")
    assert remarks(source)["damaged tars, read as far as they go"][1].startswith("b.tar: not a tar")
    assert "no files in" in find_error(tmp_path / "wds" / "a.tar")
    assert f"{tmp_path / 'wds' / 'b.tar'}: not a tar" in find_error(tmp_path / "wds" / "b.tar")


def test_stream_reads_damaged_tars_as_far_as_they_go(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["b.tar"])
    (tmp_path / "wds" / "a.tar").write_bytes(
        tar_of([("0.jpg", "x" * 700), ("1.jpg", "y" * 700)])[:2200]
    )
    stream = open_stream(tmp_path / "wds")
    first, cut, last = read_stream(stream)
    assert (first.key, last.key, first.read()) == ("a.tar/0", "b.tar/b", b"x" * 700)
    with pytest.raises(SampleError, match="cut off"):
        cut.read()
    assert remarks(stream) == {
        "damaged tars, read as far as they go": (
            1,
            "a.tar: damaged: cut off: the zeros at the end of a tar are missing",
        )
    }


def test_stream_counts_what_it_does_not_use(tmp_path: Path) -> None:
    write_tar(tmp_path / "wds" / "a.tar", [("0.jpg", "x"), ("0.npy", "y"), ("1.txt", "no picture")])
    write_tar(tmp_path / "wds" / "b.tar", [("0.jpg", "x"), ("0.npy", "y")])
    stream = open_stream(tmp_path / "wds")
    assert len(read_stream(stream)) == 2
    assert remarks(stream) == {
        "files in tars, not used: .npy": (2, "0.npy"),
        "samples in tars that have no media of the kind that is read, left out": (1, "1"),
    }


def test_source_outlives_pickling(tmp_path: Path) -> None:
    fill(tmp_path / "wds", ["a.tar", "b.tar"])
    source = open_tars(tmp_path / "wds")
    assert list_samples(pickle.loads(pickle.dumps(source))) == list_samples(source)


def test_encode_of_a_pattern_of_tars_reads_all_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picture(level: int, kind: str) -> bytes:
        memory = io.BytesIO()
        Image.new("RGB", (32, 32), (level, 80, 40)).save(memory, kind)
        return memory.getvalue()

    first = [
        ("0.jpg", picture(9, "JPEG")),
        ("0.json", {"caption": "first"}),
        ("1.png", picture(99, "PNG")),
    ]
    write_tar(tmp_path / "wds" / "00000.tar", first)
    whole = tar_of(
        [("2.webp", picture(199, "WEBP")), ("2.txt", "third"), ("3.png", picture(200, "PNG"))]
    )
    (tmp_path / "wds" / "00001.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) - 20])
    monkeypatch.chdir(tmp_path)
    lk.encode("wds/{00000..00001}.tar", "out", encoder="tiny-kl", size=32, overrides={"preview": 0})
    data = lk.open("out", columns=["text"])
    assert [(row["key"], row["text"]) for row in data] == [
        ("0", "first"),
        ("1", None),
        ("2", "third"),
    ]
    monkeypatch.chdir("/")
    assert lk.run(str(tmp_path / "out" / "recipe.yaml")).keys == data.keys

"""Source `folder`: keys, order, stamps, captions, and folders that are not what they should be."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from latentkit.contracts import BuildContext, Source
from latentkit.errors import SourceError
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig


def write_files(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def open_folder(path: Path, **options: Any) -> FolderSource:
    return FolderSource(FolderConfig(path=str(path), **options), BuildContext())


def read_attributes(source: FolderSource) -> dict[str, dict[str, Any]]:
    return {entry.key: dict(entry.attributes) for entry in source.entries()}


def find_error(path: Path, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        list(open_folder(path, **options).entries())
    return str(caught.value)


def test_keys_are_full_relative_paths_in_their_order(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            name: name
            for name in [
                "b/001.png",
                "a/001.png",
                "a/deep/er/001.JPG",
                "a.png",
                "Z.jpeg",
                "notes.md",
            ]
        },
    )
    source = open_folder(tmp_path)
    assert isinstance(source, Source)
    assert [entry.key for entry in source.entries()] == [
        "Z.jpeg",
        "a.png",
        "a/001.png",
        "a/deep/er/001.JPG",
        "b/001.png",
    ]
    assert [source[index].key for index in range(len(source))] == [
        entry.key for entry in source.entries()
    ]
    assert [source[index].read().decode() for index in range(len(source))] == [
        entry.key for entry in source.entries()
    ]


def test_entries_say_what_samples_say(tmp_path: Path) -> None:
    write_files(tmp_path, {"cat/1.png": "x", "cat/1.txt": " a cat\n", "2.png": "y"})
    source = open_folder(tmp_path)
    for index, entry in enumerate(source.entries()):
        sample = source[index]
        assert (entry.key, entry.stamp, entry.attributes) == (
            sample.key,
            sample.stamp,
            sample.attributes,
        )
        assert isinstance(sample.media, Path)


def test_path_starts_at_the_recipe_or_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"recipes/photos/a.png": "x", "home/photos/b.png": "y"})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    context = BuildContext(recipe_dir=tmp_path / "recipes")
    assert FolderSource(FolderConfig(path="photos"), context)[0].key == "a.png"
    assert FolderSource(FolderConfig(path="~/photos"), context)[0].key == "b.png"


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": "x", ".hidden.png": "x", ".cache/b.png": "x", "._a.png": "x"})
    assert list(read_attributes(open_folder(tmp_path))) == ["a.png"]


def test_sub_folders_are_left_out_when_the_recipe_says_so(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": "x", "sub/b.png": "x"})
    assert list(read_attributes(open_folder(tmp_path, recursive=False))) == ["a.png"]


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    write_files(tmp_path, {"photos/a/1.png": "x", "elsewhere/2.png": "y"})
    photos = tmp_path / "photos"
    (photos / "a" / "up").symlink_to(photos)
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    assert list(read_attributes(open_folder(photos))) == ["a/1.png", "linked/2.png"]


def test_folders_of_a_disk_that_numbers_nothing_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {"a/1.png": "x"})
    stat = os.stat
    with monkeypatch.context() as patch:
        patch.setattr(
            os, "stat", lambda path, **_: os.stat_result([*stat(path)[:1], 0, 0, *range(7)])
        )
        source = open_folder(tmp_path)
        keys = [entry.key for entry in source.entries()]
    assert keys == ["a/1.png"]


def test_link_to_nothing_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": "x"})
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    assert f"{tmp_path / 'b.png'} is a broken link" in find_error(tmp_path)


def test_name_that_is_not_utf8_becomes_a_key_of_its_own_and_still_opens(tmp_path: Path) -> None:
    for name in [b"caf\xe9.png", b"caf\\xe9.png", "café.png".encode()]:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    source = open_folder(tmp_path)
    media = {source[index].key: source[index].read() for index in range(len(source))}
    assert media == {
        r"caf\xe9.png": b"caf\xe9.png",
        r"caf\\xe9.png": b"caf\\xe9.png",
        "café.png": "café.png".encode(),
    }
    assert all(key.encode("utf-8") for key in media)


def test_stamp_changes_with_the_media_and_with_nothing_else(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {"a.png": "x", "b.png": "x", "metadata.jsonl": '{"file_name": "a.png", "text": "old"}'},
    )
    os.utime(tmp_path / "a.png", ns=(1, 1_000_000_007))
    before = {entry.key: entry.stamp for entry in open_folder(tmp_path).entries()}
    assert before["a.png"] == "1-1000000007"
    write_files(
        tmp_path, {"metadata.jsonl": '{"file_name": "a.png", "text": "new"}', "b.txt": "new"}
    )
    after = open_folder(tmp_path)
    assert {entry.key: entry.stamp for entry in after.entries()} == before
    assert read_attributes(after) == {"a.png": {"text": "new"}, "b.png": {"text": "new"}}
    os.utime(tmp_path / "a.png", ns=(1, 1_000_000_008))
    assert open_folder(tmp_path)[0].stamp != before["a.png"]


def test_source_outlives_pickling_and_threads(tmp_path: Path) -> None:
    write_files(tmp_path, {f"{number:03d}.png": str(number) for number in range(50)})
    source = open_folder(tmp_path)
    again = pickle.loads(pickle.dumps(source))
    assert list(again.entries()) == list(source.entries())
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda index: again[index].read(), range(50))) == [
            str(number).encode() for number in range(50)
        ]


# ---------------------------------------------------------------- captions and labels


def test_label_is_the_folder_of_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, {"1.png": "", "cat/2.png": "", "animals/dog/3.png": ""})
    assert read_attributes(open_folder(tmp_path)) == {
        "1.png": {},
        "cat/2.png": {"label": "cat"},
        "animals/dog/3.png": {"label": "dog"},
    }


def test_sidecar_gives_the_text_beside_every_suffix(tmp_path: Path) -> None:
    files = {"a.png": "", "a.txt": "\ufeff  ein Käfer \n", "b.nii.gz": "", "b.txt": "a heart"}
    write_files(tmp_path, files)
    source = open_folder(tmp_path, suffixes=[".png", ".gz", ".nii.gz"])
    assert read_attributes(source) == {
        "a.png": {"text": "ein Käfer"},
        "b.nii.gz": {"text": "a heart"},
    }


def test_texts_can_be_the_media_themselves(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.txt": "one", "b.txt": "two"})
    source = open_folder(tmp_path, suffixes=[".txt"])
    assert read_attributes(source) == {"a.txt": {}, "b.txt": {}}
    assert source[1].read() == b"two"


def test_columns_of_tables_win_over_sidecar_and_folder(tmp_path: Path) -> None:
    rows = [
        {
            "file_name": "cat/1.png",
            "text": "from the table",
            "label": 7,
            "tags": ["a", "b"],
            "box": {"x": 1},
        },
        {"file_name": "./2.png"},
    ]
    write_files(
        tmp_path, {"cat/1.png": "", "cat/1.txt": "from the sidecar", "2.png": "", "2.txt": "beside"}
    )
    write_files(tmp_path, {"metadata.jsonl": "\n".join(json.dumps(row) for row in rows) + "\n\n"})
    assert read_attributes(open_folder(tmp_path)) == {
        "cat/1.png": {"text": "from the table", "label": 7, "tags": ["a", "b"], "box": '{"x": 1}'},
        "2.png": {"text": "beside"},
    }


def test_table_in_a_sub_folder_names_files_from_there_and_wins_over_the_one_above(
    tmp_path: Path,
) -> None:
    write_files(
        tmp_path,
        {"train/1.png": "", "metadata.csv": "file_name,text,source\ntrain/1.png,above,web\n"},
    )
    write_files(tmp_path, {"train/metadata.csv": 'file_name,text\n1.png,"below, with a comma"\n'})
    assert read_attributes(open_folder(tmp_path))["train/1.png"] == {
        "label": "train",
        "text": "below, with a comma",
        "source": "web",
    }


def test_csv_keeps_texts_and_drops_the_row_numbers_of_pandas(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": "", "metadata.csv": "\ufeff,file_name,code\n0,a.png,007\n"})
    assert read_attributes(open_folder(tmp_path)) == {"a.png": {"code": "007"}}


def test_table_of_another_name_is_read_when_the_recipe_names_it(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "a.png": "",
            "captions.jsonl": '{"file_name": "a.png", "text": "x"}',
            "metadata.csv": "broken",
        },
    )
    assert read_attributes(open_folder(tmp_path, metadata="captions.jsonl")) == {
        "a.png": {"text": "x"}
    }
    assert "metadata names other.jsonl" in find_error(tmp_path, metadata="other.jsonl")


def test_row_of_a_file_that_the_suffixes_leave_out_is_left_out_too(tmp_path: Path) -> None:
    write_files(
        tmp_path, {"a.png": "", "a.wav": "", "metadata.csv": "file_name,text\na.png,x\na.wav,y\n"}
    )
    assert read_attributes(open_folder(tmp_path)) == {"a.png": {"text": "x"}}


@pytest.mark.parametrize(
    ("table", "text", "parts"),
    [
        (
            "metadata.jsonl",
            '{"file_name": "gone.png"}\n{"file_name": "b.png"}',
            ["line 1", "no file 'gone.png'", "file_name"],
        ),
        (
            "metadata.jsonl",
            '{"file_name": "../outside.png"}',
            ["line 1", "no file '../outside.png'"],
        ),
        ("metadata.jsonl", '\n{"file_name": "a.png"', ["line 2", "not JSON"]),
        (
            "metadata.jsonl",
            '["a.png"]',
            ["line 1", "expected a JSON object with 'file_name', got list"],
        ),
        (
            "metadata.jsonl",
            '{"file": 7}',
            ["line 1", "no file 7 in the source", "tried the columns file"],
        ),
        (
            "metadata.csv",
            "score,mood\n1,x\n",
            ["line 2", "no file '1'", "tried the columns score, mood"],
        ),
        ("metadata.csv", "", ["line 1", "got none"]),
        ("metadata.csv", "file_name,text,text\na.png,x,y\n", ["line 1", "each once"]),
        ("metadata.csv", "file_name,text\na.png,x,y\n", ["line 2", "expected 2 columns"]),
        ("metadata.csv", "file_name,text\na.png\n", ["line 2", "expected 2 columns"]),
        ("metadata.csv", 'file_name,text\na.png,"x" y\n', ["line 2", "not CSV"]),
        ("metadata.csv", "file_name,text\ngone.png,x\n", ["line 2", "no file 'gone.png'"]),
    ],
)
def test_table_that_does_not_fit_is_named_with_its_line(
    table: str, text: str, parts: list[str], tmp_path: Path
) -> None:
    write_files(tmp_path, {"photos/a.png": "", f"photos/{table}": text, "outside.png": ""})
    error = find_error(tmp_path / "photos")
    assert [part for part in [str(tmp_path / "photos" / table), *parts] if part not in error] == []


# ---------------------------------------------------------------- no such folder


def test_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'gone'} does not exist" in find_error(tmp_path / "gone")


def test_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    write_files(tmp_path, {"a.png": ""})
    assert f"{tmp_path / 'a.png'} is a file, not a folder" in find_error(tmp_path / "a.png")


def test_folder_without_a_matching_file_says_what_was_looked_for_and_what_is_there(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, {"a.heic": "", "sub/b.HEIC": "", "c.wav": "", "README": "", ".d.png": ""})
    error = find_error(tmp_path, suffixes=[".jpg", ".png"])
    assert "ends in .jpg, .png" in error
    assert "others there: .heic (2), " in error
    assert all(other in error for other in [".wav (1)", "no suffix (1)", "source.with.suffixes"])


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "there are no other files either" in find_error(tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"suffixes": ["jpg"]}, {"suffixes": []}, {"suffixes": ["."]}, {"metadata": "captions.txt"}],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        FolderConfig(path="photos", **options)

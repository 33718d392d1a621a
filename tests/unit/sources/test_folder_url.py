"""Source `folder` at a URL: the same samples as of the folder itself, few requests, local copies
that go, and clear words.
"""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latentkit.builtin.plugins import latentkit_sources
from latentkit.contracts import BuildContext, Source
from latentkit.errors import LatentkitError, RecipeError, SampleError, SourceError
from latentkit.runtime.paths import find_file_path
from latentkit.sources import url_files
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig
from latentkit.store import outage
from latentkit.tasks.recipe_from_arguments import encode_recipe
from latentkit.testing import SourceContract

Memory = Any


def fill(store: Memory, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        store.pipe_file(f"/{name}", content.encode() if isinstance(content, str) else content)


def open_at(url: str, **options: Any) -> FolderSource:
    return FolderSource(FolderConfig(path=url, **options), BuildContext())


def test_samples_are_those_of_the_folder_itself(
    memory: Memory, write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    (photos / "cats").mkdir()
    (photos / "cats/ä b#1?.png").write_bytes((photos / "000.png").read_bytes())
    (photos / ".cache").mkdir()
    (photos / ".cache/x.png").write_bytes(b"x")
    for part in ("plans", "units", "preview"):
        (photos / "old" / part).mkdir(parents=True)
        (photos / "old" / part / "a.png").write_bytes(b"x")
    (photos / "metadata.csv").write_text("file_name,score\n001.png,7\ncats/ä b#1?.png,8\n")
    memory.put(str(photos), "/bucket/photos", recursive=True)
    here, there = open_at(str(photos)), open_at("memory://bucket/photos/")
    assert [entry.key for entry in there.entries()] == [
        "000.png",
        "001.png",
        "002.png",
        "003.png",
        "cats/ä b#1?.png",
    ]
    for index in range(len(here)):
        local, remote = here[index], there[index]
        assert (local.key, local.attributes, local.read()) == (
            remote.key,
            remote.attributes,
            remote.read(),
        )
        assert local.content() == remote.content()
    assert "cats/ä b#1?.png" not in there.folder.list(False).files
    assert "003.png" in there.folder.list(False).files
    assert there.folder.list(True).hidden == [".cache"]
    assert there.folder.list(True).latent_datasets == ["old/"]


def test_stamp_changes_when_the_file_does(memory: Memory) -> None:
    fill(memory, {"p/a.png": b"one", "p/b.png": b"two"})
    before = [entry.stamp for entry in open_at("memory://p").entries()]
    fill(memory, {"p/b.png": b"TWO"})
    after = [entry.stamp for entry in open_at("memory://p").entries()]
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize(
    ("state", "stamp"),
    [
        ({"size": 3, "ETag": '"abc-2"', "LastModified": "now"}, "3-abc-2"),
        ({"size": 3, "etag": "abc"}, "3-abc"),
        ({"size": 3, "mtime": 1.5, "created": 1.0}, "3-1.5"),
        ({"size": 3}, "3"),
    ],
)
def test_stamp_is_made_of_what_the_storage_says(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], stamp: str
) -> None:
    monkeypatch.setattr(
        MemoryFileSystem,
        "find",
        lambda *_, **__: {"/p/a": {"name": "/p/a", "type": "file", **state}},
    )
    files = url_files.UrlFiles("memory://p")
    assert files.stamp("a") == stamp
    assert files.size("a") == 3


class Counting:
    """Counts what is asked of the store in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        cat_file = MemoryFileSystem.cat_file

        def counted(store: Any, path: str, *args: Any, **options: Any) -> Any:
            self.read.append(path)
            return cat_file(store, path, *args, **options)

        monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)


def test_captions_are_read_once_and_media_not_at_all_for_entries(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, {f"p/{number:03d}.png": b"x" for number in range(600)})
    fill(memory, {f"p/{number:03d}.txt": f"text {number}" for number in range(600)})
    source, counting = open_at("memory://p"), Counting(monkeypatch)
    for _ in range(2):
        assert [entry.attributes["text"] for entry in source.entries()] == [
            f"text {number}" for number in range(600)
        ]
    assert len(counting.read) == 600
    assert all(path.endswith(".txt") for path in counting.read)
    assert source[5].attributes["text"] == "text 5"
    assert len(counting.read) == 600


def test_caption_that_is_gone_since_it_was_listed_makes_a_bad_sample(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, {f"bucket/{name}.{ending}": name for name in "abcde" for ending in ("png", "txt")})
    source = open_at("memory://bucket")
    memory.rm("/bucket/a.txt")
    memory.rm("/bucket/c.txt")
    entries = list(source.entries())
    assert [entry.attributes for entry in entries] == [
        {},
        {"text": "b"},
        {},
        {"text": "d"},
        {"text": "e"},
    ]
    with pytest.raises(SampleError, match=r"^its caption c\.txt is gone$"):
        source[2]
    fail_with(monkeypatch, "cat_file", PermissionError("no"), 99)
    with pytest.raises(LatentkitError, match="no"):
        list(open_at("memory://bucket").entries())


def test_captions_that_there_is_no_room_for_are_read_again_one_by_one(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(url_files, "KEPT_BYTES", 40)
    monkeypatch.setattr(url_files, "FETCHED_AHEAD", 4)
    fill(
        memory,
        {f"p/{number}.png": b"x" for number in range(9)}
        | {f"p/{number}.txt": f"text number {number}" for number in range(9)},
    )
    source, counting = open_at("memory://p"), Counting(monkeypatch)
    assert [entry.attributes["text"] for entry in source.entries()] == [
        f"text number {number}" for number in range(9)
    ]
    assert len(counting.read) == 9
    assert [source[index].attributes["text"] for index in (7, 3, 5)] == [
        "text number 7",
        "text number 3",
        "text number 5",
    ]
    assert len(counting.read) <= 12
    assert source.folder.num_kept_bytes <= 40  # type: ignore[attr-defined]


# ---------------------------------------------------------------- local copies


def copies(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_local_copy_is_made_for_a_path_and_goes_with_its_users(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fill(memory, {"p/a.mp4": b"a" * 10, "p/b.mp4": b"b" * 10})
    source = open_at("memory://p", suffixes=[".mp4"])
    first = source[0]
    assert first.read() == b"a" * 10
    assert copies(tmp_path) == []  # the bytes come without one
    path = Path(os.fspath(first.media))  # type: ignore[call-overload]
    assert path.read_bytes() == b"a" * 10
    assert path.suffix == ".mp4"
    assert os.fspath(source[0].media) == str(path)  # type: ignore[call-overload]  # of the same file, as spans of it are
    monkeypatch.setattr(url_files, "COPIES_BYTES", 15)
    os.fspath(source[1].media)  # type: ignore[call-overload]
    assert path.is_file()  # in use
    del first
    gc.collect()
    assert len(copies(tmp_path)) == 1
    del source
    gc.collect()
    assert copies(tmp_path) == []


def test_source_and_samples_go_to_other_processes(memory: Memory) -> None:
    fill(memory, {"p/a.png": b"one", "p/a.txt": "text"})
    source = open_at("memory://p")
    copy = pickle.loads(pickle.dumps(source))
    assert list(copy.entries()) == list(source.entries())
    assert pickle.loads(pickle.dumps(source[0])).read() == b"one"


class TestUrlContract(SourceContract):
    """The source keeps at a URL what every source promises."""

    spec = next(spec for spec in latentkit_sources() if spec.name == "folder")

    @pytest.fixture(autouse=True)
    def _files(self, memory: Memory) -> None:
        fill(memory, {"p/a.png": b"one", "p/a.txt": "text", "p/d/b.png": b"two"})

    def make_config(self, tmp_path: Path) -> FolderConfig:
        return FolderConfig(path="memory://p")

    def media_files(self, source: Source) -> list[Any]:
        return []  # none on this machine, until one is asked for


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outage, "GIVE_UP_AFTER_SECONDS", 0.05)


def fail_with(monkeypatch: pytest.MonkeyPatch, method: str, error: Exception, times: int) -> None:
    """Let a driver's method fail so many times, and then do what it does."""
    whole, left = getattr(MemoryFileSystem, method), [times]

    def failing(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return whole(*args, **options)

    monkeypatch.setattr(MemoryFileSystem, method, failing)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("method", ["find", "cat_file", "get_file"])
def test_requests_that_fail_in_passing_are_sent_again(
    memory: Memory, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    fill(memory, {"p/a.mp4": b"video", "p/a.txt": "text"})
    fail_with(monkeypatch, method, TimeoutError("slow"), 1)
    source = open_at("memory://p", suffixes=[".mp4"])
    sample = source[0]
    assert sample.attributes["text"] == "text"
    assert Path(os.fspath(sample.media)).read_bytes() == sample.read() == b"video"  # type: ignore[call-overload]


@pytest.mark.usefixtures("impatient")
def test_outage_that_lasts_ends_the_run_with_words(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(memory, {"p/a.png": b"x"})
    source = open_at("memory://p")
    fail_with(monkeypatch, "cat_file", TimeoutError("slow"), 1000)
    with pytest.raises(
        SourceError,
        match=r"memory://p/a.png can't be reached \(TimeoutError: slow\). Run again when it can",
    ):
        source[0].read()


def test_file_that_grew_since_it_was_listed_is_read_whole(memory: Memory) -> None:
    fill(memory, {"p/a.png": b"one", "p/b.png": b""})
    source = open_at("memory://p")
    fill(memory, {"p/a.png": b"one and more"})
    assert source[0].read() == b"one and more"
    assert source[1].read() == b""


def test_file_that_is_gone_since_it_was_listed_is_named(memory: Memory) -> None:
    fill(memory, {"p/a.png": b"x", "p/b.png": b"x"})
    source = open_at("memory://p")
    memory.rm("/p/a.png")
    with pytest.raises(SourceError, match=r"memory://p/a\.png: no such file"):
        source[0].read()
    with pytest.raises(SourceError, match=r"memory://p/a\.png: no such file"):
        os.fspath(source[0].media)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nothing", "memory://nothing: there are no files below"),
        ("memory://p/a.png", "memory://p/a.png is a file, not a folder"),
        ("memory://empty", "no file below memory://empty ends in"),
        ("nonsense://p", "nonsense://p: ValueError: Protocol not known: nonsense"),
        ("sftp://host/p", "pip install paramiko|the driver is missing"),
        ("file:///nothing/here", "/nothing/here does not exist"),
    ],
)
def test_wrong_places_are_named_as_they_were_written(memory: Memory, url: str, words: str) -> None:
    fill(memory, {"p/a.png": b"x", "empty/readme.md": b"x"})
    with pytest.raises(LatentkitError, match=words):
        open_at(url)


# ---------------------------------------------------------------- words


def test_file_urls_are_paths(tmp_path: Path, write_photos: Callable[..., Path]) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    assert open_at(f"file://{photos}")[0].media == photos / "000.png"
    assert find_file_path("s3://a/b") is None
    assert find_file_path("file://localhost/a/b") == "/a/b"
    with pytest.raises(RecipeError, match="three slashes"):
        find_file_path("file://a/b")
    assert encode_recipe(f"file://{photos}", "out", None)[0]["source"]["with"] == {
        "path": str(photos)
    }


@pytest.mark.parametrize(
    ("files", "use"),
    [
        (
            {"p/a.png": b"", "p/metadata.csv": b""},
            {"use": "folder", "with": {"path": "memory://p"}},
        ),
        ({"p/00.tar": b"", "p/01.tar": b""}, {"use": "datasets", "with": {"path": "memory://p"}}),
        ({"p/t.parquet": b""}, {"use": "datasets", "with": {"path": "memory://p"}}),
    ],
)
def test_short_command_looks_at_what_lies_at_a_url(
    memory: Memory, files: dict[str, bytes | str], use: dict[str, Any]
) -> None:
    fill(memory, files)
    assert encode_recipe("memory://p", "out", None)[0]["source"] == use

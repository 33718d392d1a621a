"""Every check for sources fails for a source that is broken in that one way, and none for good
ones.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from latentkit.contracts import Config, Entry, Sample, SourceSpec
from latentkit.testing import PluginContract, SourceContract, check_names, find_failures

TEXTS = {"a.txt": "one", "b.txt": "three", "c.txt": "fifteen"}


class NoConfig(Config):
    """No options."""


class Files:
    """A good source: the text files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.txt"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        return Sample(self.key(path), self.media(path), self.attributes(path), self.stamp(path))

    def entries(self) -> Iterator[Entry]:
        return (
            Entry(self.key(path), self.stamp(path), self.attributes(path)) for path in self.paths
        )

    def key(self, path: Path) -> Any:
        return path.name

    def media(self, path: Path) -> object:
        return path

    def attributes(self, path: Path) -> dict[Any, Any]:
        return {"letters": len(path.name), "parts": [path.stem, path.suffix], "score": None}

    def stamp(self, path: Path) -> Any:
        return str(path.stat().st_size)


class FilesContract(SourceContract):
    def __init__(self, build: Callable[[Path], Any]) -> None:
        self.spec = SourceSpec(
            "files",
            "text files of a folder",
            NoConfig,
            lambda config, context: build(context.recipe_dir),
        )

    def make_config(self, tmp_path: Path) -> NoConfig:
        for name, text in TEXTS.items():
            (tmp_path / name).write_text(text)
        return NoConfig()

    def entry_point(self) -> None:
        """Declared here only."""


# ---------------------------------------------------------------- broken in one way each


class Empty(Files):
    def __init__(self, folder: Path) -> None:
        self.paths = []


class OneKeyForAll(Files):
    def key(self, path: Path) -> str:
        return "photo"


class NumberKeys(Files):
    def key(self, path: Path) -> int:
        return self.paths.index(path)


class EmptyKey(Files):
    def key(self, path: Path) -> str:
        return path.name if self.paths.index(path) else ""


class UnstorableKey(Files):
    def key(self, path: Path) -> str:
        return path.name + "\udcff"


class NumberStamps(Files):
    def stamp(self, path: Path) -> int:
        return path.stat().st_size


class DecodedMedia(Files):
    def media(self, path: Path) -> object:
        return list(path.read_text())


class NestedAttributes(Files):
    def attributes(self, path: Path) -> dict[Any, Any]:
        return {"size": {"height": 1, "width": 1}}


class ListsOfLists(Files):
    def attributes(self, path: Path) -> dict[Any, Any]:
        return {"boxes": [[0, 0, 1, 1]]}


class NumberedAttributes(Files):
    def attributes(self, path: Path) -> dict[Any, Any]:
        return {0: "caption"}


class PathAttribute(Files):
    def attributes(self, path: Path) -> dict[Any, Any]:
        return {"path": path}


class AnotherOrderEachTime(Files):
    num_builds = itertools.count()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        start = next(self.num_builds) % len(self.paths)
        self.paths = self.paths[start:] + self.paths[:start]


class Unpicklable(Files):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lock = threading.Lock()


class ReversedByPickle(Files):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.paths = state["paths"][::-1]


class ReversedEntries(Files):
    def entries(self) -> Iterator[Entry]:
        return reversed(list(super().entries()))


class EntriesWithoutAttributes(Files):
    def entries(self) -> Iterator[Entry]:
        return (Entry(entry.key, entry.stamp) for entry in super().entries())


class EntriesWithoutStamps(Files):
    def entries(self) -> Iterator[Entry]:
        return (Entry(entry.key, "", entry.attributes) for entry in super().entries())


class EntriesOnce(Files):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rest = iter(list(super().entries()))

    def entries(self) -> Iterator[Entry]:
        return self.rest


class StampsFromContent(Files):
    def stamp(self, path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()


class StampsByADescriptor(Files):
    def stamp(self, path: Path) -> str:
        descriptor = os.open(os.path.relpath(path), os.O_RDONLY)
        size = os.fstat(descriptor).st_size
        os.close(descriptor)
        return str(size)


class OtherMediaLater(Files):
    """Any reading but the first of a sample, in whatever thread."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seen: set[Path] = set()

    def media(self, path: Path) -> object:
        is_first = path not in self.seen
        self.seen.add(path)
        return b"first" if is_first else b"later"


class OnePositionForAllThreads(Files):
    def __getitem__(self, index: int) -> Sample:
        self.position = index
        time.sleep(0.002)
        return super().__getitem__(self.position)


class AroundTheEnd(Files):
    def __getitem__(self, index: int) -> Sample:
        return super().__getitem__(index % len(self)) if self.paths else super().__getitem__(0)


class KeyOfAnyPosition(Files):
    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        return Sample(f"{index:04d}", path, self.attributes(path), self.stamp(path))

    def entries(self) -> Iterator[Entry]:
        return (
            Entry(f"{index:04d}", entry.stamp, entry.attributes)
            for index, entry in enumerate(super().entries())
        )


BROKEN: dict[str, list[type[Files]]] = {
    "test_there_are_samples": [Empty],
    "test_keys_are_unique": [OneKeyForAll],
    "test_keys_are_texts": [NumberKeys, EmptyKey, UnstorableKey],
    "test_stamps_are_texts": [NumberStamps],
    "test_media_is_bytes_a_path_or_a_text": [DecodedMedia],
    "test_attributes_are_json_like": [
        NestedAttributes,
        ListsOfLists,
        NumberedAttributes,
        PathAttribute,
    ],
    "test_two_builds_give_equal_samples": [AnotherOrderEachTime],
    "test_a_pickled_copy_gives_equal_samples": [Unpicklable, ReversedByPickle],
    "test_entries_agree_with_samples": [
        ReversedEntries,
        EntriesWithoutAttributes,
        EntriesWithoutStamps,
    ],
    "test_entries_can_be_listed_again": [EntriesOnce],
    "test_entries_open_no_media": [StampsFromContent, StampsByADescriptor],
    "test_a_sample_read_again_is_equal": [OtherMediaLater],
    "test_threads_read_equal_samples": [OnePositionForAllThreads],
    "test_a_position_beyond_the_ends_raises_index_error": [AroundTheEnd, KeyOfAnyPosition],
}
ALSO: dict[type[Files], set[str]] = {OtherMediaLater: {"test_threads_read_equal_samples"}}
"""Checks that a double can't help failing besides its own: threads read again, too."""


@pytest.mark.parametrize(
    ("check", "double"),
    [(check, double) for check, doubles in BROKEN.items() for double in doubles],
)
def test_a_source_broken_in_one_way_fails_the_check_for_it(
    check: str, double: type[Files], tmp_path: Path
) -> None:
    assert set(find_failures(FilesContract(double), tmp_path)) == {check} | ALSO.get(double, set())


def test_a_good_source_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(FilesContract(Files), tmp_path) == {}


def test_a_source_that_lacks_a_member_breaks_its_protocol(tmp_path: Path) -> None:
    assert "test_build_gives_what_the_hook_promises" in find_failures(
        FilesContract(lambda folder: ["a", "b"]), tmp_path
    )


def test_every_check_for_sources_is_proved() -> None:
    assert {*BROKEN, *check_names(PluginContract)} == set(check_names(SourceContract))

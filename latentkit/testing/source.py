"""Checks for sources by position, and for sources that are read as a stream."""

from __future__ import annotations

import functools
import itertools
import os
import pickle
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from latentkit.contracts import NamedSpec, Sample, Source, SourceSpec, StreamSource
from latentkit.testing.plugin import PluginContract, find_unplain, is_storable

NUM_THREADS = 8


class SampleContract(PluginContract, ABC):
    """Checks of samples, for both kinds of source.

    Subclass `SourceContract` or `StreamSourceContract`, not this class.
    """

    spec_type: ClassVar[type[NamedSpec]] = SourceSpec

    @abstractmethod
    def read_all(self, source: Any) -> list[Sample]:
        """Return every sample of a source, in order."""

    def make_samples(self, tmp_path: Path) -> list[Sample]:
        """Return every sample of the source under test."""
        return self.read_all(self.build(tmp_path))

    def test_there_are_samples(self, tmp_path: Path) -> None:
        """The source has at least one sample; one that finds none raises `SourceError` when built.
        """
        assert self.make_samples(
            tmp_path
        ), "the source is empty: override make_config so that it finds samples"

    def test_keys_are_unique(self, tmp_path: Path) -> None:
        """No two samples have the same key, because rows of a latent dataset are found, joined and
        resumed by their key.
        """
        keys = [sample.key for sample in self.make_samples(tmp_path)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        assert (
            not twice
        ), f"keys that occur twice: {twice}; use full relative paths, or add a number"

    def test_keys_are_texts(self, tmp_path: Path) -> None:
        """A key is a text that isn't empty and that UTF-8 can store."""
        wrong = [
            repr(key)
            for key in (sample.key for sample in self.make_samples(tmp_path))
            if not is_name(key)
        ]
        assert not wrong, f"these keys aren't texts, are empty, or aren't UTF-8: {', '.join(wrong)}"

    def test_stamps_are_texts(self, tmp_path: Path) -> None:
        """A stamp is a text; numbers and times must be converted to text."""
        wrong = [
            f"{sample.key}: {sample.stamp!r}"
            for sample in self.make_samples(tmp_path)
            if not isinstance(sample.stamp, str)
        ]
        assert not wrong, f"these stamps are not str: {', '.join(wrong)}"

    def test_media_is_bytes_a_path_or_a_text(self, tmp_path: Path) -> None:
        """Media comes undecoded: `bytes`, a path, or a `str` that is itself the media."""
        kinds = {
            type(sample.media).__name__
            for sample in self.make_samples(tmp_path)
            if not has_known_media(sample)
        }
        assert not kinds, (
            f"media of the types {sorted(kinds)}: give bytes, a pathlib.Path or a str, and leave"
            " decoding to the modality"
        )

    def test_attributes_are_json_like(self, tmp_path: Path) -> None:
        """Attributes map texts to scalars or lists of scalars, because they become columns of a
        table.
        """
        wrong = {
            f"{sample.key}: {name}"
            for sample in self.make_samples(tmp_path)
            for name in find_unplain(sample.attributes)
        }
        assert not wrong, (
            f"not a number, text, bool, None or list of those: {sorted(wrong)}; write anything"
            " deeper as JSON text"
        )

    def test_two_builds_give_equal_samples(self, tmp_path: Path) -> None:
        """The same config gives the same samples in the same order in every process."""
        first, second = (self.read_all(source) for source in self.build_twice(tmp_path))
        assert facts_of(first) == facts_of(
            second
        ), "two builds of one config differ: sort what is found, and draw nothing at random"

    def test_a_pickled_copy_gives_equal_samples(self, tmp_path: Path) -> None:
        """A pickled copy, as a worker in another process gets it, has the same samples."""
        source = self.build(tmp_path)
        copy = pickle.loads(pickle.dumps(source))
        same = facts_of(self.read_all(copy)) == facts_of(self.read_all(source))
        assert same, "a pickled copy differs: look at __getstate__ and __reduce__"


class SourceContract(SampleContract):
    """Checks that every `Source` must pass.

    Set `spec`, and override `make_config` so that the source has a few small samples.
    """

    protocols: ClassVar[tuple[type, ...]] = (Source,)

    def read_all(self, source: Source) -> list[Sample]:
        """Return every sample, by position."""
        return [source[index] for index in range(len(source))]

    def make_source(self, tmp_path: Path) -> Source:
        """Return the source under test."""
        source: Source = self.build(tmp_path)
        return source

    def media_files(self, source: Source) -> Iterable[os.PathLike[str] | str]:
        """Return the files that `entries()` must not open: the samples' paths.

        Override it for a source that reads bytes from files itself.
        """
        return [
            sample.media
            for sample in self.read_all(source)
            if isinstance(sample.media, os.PathLike)
        ]

    def test_entries_agree_with_samples(self, tmp_path: Path) -> None:
        """`entries()` gives key, stamp and attributes of each sample, in the order of `source[0]`,
        `source[1]` ...
        """
        source = self.make_source(tmp_path)
        listed = [(entry.key, entry.stamp, dict(entry.attributes)) for entry in source.entries()]
        read = [
            (sample.key, sample.stamp, dict(sample.attributes)) for sample in self.read_all(source)
        ]
        assert (
            listed == read
        ), f"entries() gives {listed}\nbut the samples have {read}\nmake both from one list"

    def test_entries_can_be_listed_again(self, tmp_path: Path) -> None:
        """Calling `entries()` a second time gives the same entries from the start."""
        source = self.make_source(tmp_path)
        first, second = list(source.entries()), list(source.entries())
        assert (
            first == second
        ), "the second call of entries() differs: give a new iterator each time, over a fixed list"

    def test_entries_open_no_media(self, tmp_path: Path) -> None:
        """`entries()` opens no media file, because it runs over the whole source before any work,
        and again on every resume.
        """
        source = self.make_source(tmp_path)
        media = {os.path.realpath(path) for path in self.media_files(source)}
        with watch_opened_files() as opened:
            list(source.entries())
        assert not media & opened, (
            f"entries() opened {sorted(media & opened)}: take stamps from os.stat, a listing, or a"
            " table"
        )

    def test_a_sample_read_again_is_equal(self, tmp_path: Path) -> None:
        """Reading a sample twice gives the same key, stamp, attributes and bytes."""
        source = self.make_source(tmp_path)
        first, second = facts_of(self.read_all(source)), facts_of(self.read_all(source))
        assert (
            first == second
        ), "a second reading differs: __getitem__ must depend on nothing but the position"

    def test_threads_read_equal_samples(self, tmp_path: Path) -> None:
        """Reading from several threads at once gives what one thread gives: no shared file
        position, no shared buffer.
        """
        source = self.make_source(tmp_path)
        expected = facts_of(self.read_all(source))
        positions = list(range(len(source))) * 4
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = facts_of(pool.map(source.__getitem__, positions))
        assert found == [
            expected[index] for index in positions
        ], "threads got other samples: open files again in each __getitem__, or lock"

    def test_a_position_beyond_the_ends_raises_index_error(self, tmp_path: Path) -> None:
        """`source[len(source)]` and `source[-len(source) - 1]` raise `IndexError`; so does
        `source[-1]`, unless it is the last sample.
        """
        source = self.make_source(tmp_path)
        size = len(source)
        for index in (size, -size - 1):
            assert (
                read_or_none(source, index) is None
            ), f"source[{index}] of {size} samples returned a sample: raise IndexError"
        last = read_or_none(source, -1)
        is_last = last is None or last.key == source[size - 1].key
        assert is_last, (
            "source[-1] is another sample than the last: raise IndexError, or start with index ="
            " range(len(self))[index]"
        )


class StreamSourceContract(SampleContract):
    """Checks that every `StreamSource` must pass.

    Set `spec`, and override `make_config` so that the source has several shards.
    """

    protocols: ClassVar[tuple[type, ...]] = (StreamSource,)

    def read_all(self, source: StreamSource) -> list[Sample]:
        """Return every sample, shard by shard."""
        return [sample for shard in source.shards() for sample in source.read(shard)]

    def make_source(self, tmp_path: Path) -> StreamSource:
        """Return the source under test."""
        source: StreamSource = self.build(tmp_path)
        return source

    def test_shards_have_unique_names(self, tmp_path: Path) -> None:
        """Shards have different names, texts that aren't empty, and stamps that are texts."""
        shards = self.make_source(tmp_path).shards()
        names = [shard.name for shard in shards]
        wrong = [
            shard
            for shard in shards
            if not is_name(shard.name)
            or not isinstance(shard.stamp, str)
            or names.count(shard.name) > 1
        ]
        assert not wrong, f"names must be unique texts, and stamps texts: {wrong}"

    def test_shards_can_be_listed_again(self, tmp_path: Path) -> None:
        """Calling `shards()` a second time gives the same shards, also after one was read."""
        source = self.make_source(tmp_path)
        first = source.shards()
        list(source.read(first[0]))
        assert (
            source.shards() == first
        ), "the second call of shards() differs: give all shards in a fixed order each time"

    def test_a_shard_read_again_is_equal(self, tmp_path: Path) -> None:
        """Reading a shard twice gives the same samples in the same order."""
        source = self.make_source(tmp_path)
        for shard in source.shards():
            first, second = facts_of(source.read(shard)), facts_of(source.read(shard))
            assert (
                first == second
            ), f"a second reading of shard {shard.name!r} differs: start over, and don't shuffle"

    def test_shards_can_be_read_in_any_order_and_at_once(self, tmp_path: Path) -> None:
        """A shard's samples don't depend on what else is read: processes take shards as they come.
        """
        first, second = self.build_twice(tmp_path)
        expected = [facts_of(first.read(shard)) for shard in first.shards()]
        readers = [second.read(shard) for shard in reversed(second.shards())]
        found: list[list[Sample]] = [[] for _ in readers]
        for row in itertools.zip_longest(*readers):
            for samples, sample in zip(found, row, strict=True):
                samples += [] if sample is None else [sample]
        assert [
            facts_of(samples) for samples in reversed(found)
        ] == expected, "shards read at once differ: keep a position per read()"


# ---------------------------------------------------------------- looking at samples


def is_name(value: object) -> bool:
    """Return whether a value is a text that isn't empty and can be stored."""
    return isinstance(value, str) and value != "" and is_storable(value)


def has_known_media(sample: Sample) -> bool:
    """Return whether a sample's media is of a type that the contract allows."""
    return isinstance(sample.media, bytes | str | os.PathLike)


def facts_of(samples: Iterable[Sample]) -> list[tuple[Any, ...]]:
    """Return everything that must be equal when the same samples are read again: key, stamp,
    attributes, and the hash of the media.
    """
    return [
        (
            sample.key,
            sample.stamp,
            dict(sample.attributes),
            sample.content() if has_known_media(sample) else type(sample.media),
        )
        for sample in samples
    ]


def read_or_none(source: Source, index: int) -> Sample | None:
    """Return the sample at a position; None if the source raises `IndexError`."""
    try:
        return source[index]
    except IndexError:
        return None


_watches: list[set[str]] = []


@contextmanager
def watch_opened_files() -> Iterator[set[str]]:
    """Yield a set of the real paths of all files that Python code opens inside the block, in any
    thread.
    """
    _install_watcher()
    opened: set[str] = set()
    _watches.append(opened)
    try:
        yield opened
    finally:
        _watches.remove(opened)


@functools.cache
def _install_watcher() -> None:
    """Install a hook for the interpreter's "open" events.

    A hook can't be removed, so a single one is installed, which does nothing outside
    `watch_opened_files`.
    """

    def record_opened(event: str, arguments: tuple[Any, ...]) -> None:
        if _watches and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            for opened in _watches:
                opened.add(path)

    sys.addaudithook(record_opened)

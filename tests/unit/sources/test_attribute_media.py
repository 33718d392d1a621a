"""Captions in the place of the pictures that they belong to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from latentkit.contracts import Entry, Sample, Shard, Source, StreamSource
from latentkit.sources.attribute_media import take_attribute

ROWS: Mapping[str, Mapping[str, Any]] = {
    "a": {"text": "a cat"},
    "b": {"text": "cut in an emoji \ud83d"},
    "c": {"text": 3},
    "d": {},
}


class Pictures:
    """Pictures that can't be opened, so that whoever opens one is noticed."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> Sample:
        key = list(ROWS)[index]
        return Sample(key, Path("/no such picture"), ROWS[key], "stamp of the picture")

    def entries(self) -> Iterator[Entry]:
        return (Entry(key, "stamp of the picture", attributes) for key, attributes in ROWS.items())


class Tar:
    """The same as a stream."""

    def shards(self) -> list[Shard]:
        return [Shard("one", "its stamp")]

    def read(self, shard: Shard) -> Iterator[Sample]:
        return (Pictures()[index] for index in range(len(ROWS)))


def test_the_media_is_the_text_of_the_attribute_and_nothing_where_there_is_none() -> None:
    source = take_attribute(Pictures(), "text")
    assert isinstance(source, Source)
    assert [source[index].media for index in range(len(source))] == [
        "a cat",
        "cut in an emoji \\ud83d",
        "",
        "",
    ]
    assert [source[index].attributes for index in range(4)] == list(ROWS.values())
    assert len({source[index].content() for index in range(4)}) == 3


def test_a_stamp_follows_the_text_alone() -> None:
    source = take_attribute(Pictures(), "text")
    assert isinstance(source, Source)
    stamps = [entry.stamp for entry in source.entries()]
    assert stamps == [source[index].stamp for index in range(4)]
    assert len(set(stamps)) == 3
    assert stamps[2] == stamps[3]


def test_a_stream_gives_the_same_samples() -> None:
    source, stream = take_attribute(Pictures(), "text"), take_attribute(Tar(), "text")
    assert isinstance(source, Source)
    assert isinstance(stream, StreamSource)
    assert stream.shards() == [Shard("one", "its stamp")]
    assert list(stream.read(Shard("one"))) == [source[index] for index in range(4)]


def test_it_can_be_pickled() -> None:
    source = pickle.loads(pickle.dumps(take_attribute(Pictures(), "text")))
    assert source[0].media == "a cat"

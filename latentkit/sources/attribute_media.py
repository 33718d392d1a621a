"""A source that uses an attribute of another source's samples as media, such as the captions of
images for a modality that reads text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from latentkit.contracts import Entry, Remark, Sample, Shard, Source, StreamSource
from latentkit.runtime.source_remarks import read_remarks


def take_attribute(source: Source | StreamSource, name: str) -> Source | StreamSource:
    """Return a source with the same keys, whose media is the text of an attribute ("" if a sample
    has none or it isn't text).

    The original media is never opened. A sample counts as changed when its text changes.
    """
    return (
        AttributeStream(source, name)
        if isinstance(source, StreamSource)
        else AttributeSource(source, name)
    )


class AttributeSource:
    """A source by position; see `take_attribute`."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return _with_text_as_media(self._source[index], self._name)

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per sample. Its stamp is a hash of the text."""
        return (
            replace(entry, stamp=_stamp(_text(entry, self._name)))
            for entry in self._source.entries()
        )

    def remarks(self) -> list[Remark]:
        """Return the remarks of the original source."""
        return read_remarks(self._source)


class AttributeStream:
    """A source by shard; see `take_attribute`."""

    def __init__(self, source: StreamSource, name: str) -> None:
        self._source, self._name = source, name

    def shards(self) -> list[Shard]:
        return self._source.shards()

    def read(self, shard: Shard) -> Iterator[Sample]:
        return (_with_text_as_media(sample, self._name) for sample in self._source.read(shard))

    def remarks(self) -> list[Remark]:
        """Return the remarks of the original source."""
        return read_remarks(self._source)


def _with_text_as_media(sample: Sample, name: str) -> Sample:
    text = _text(sample, name)
    return replace(sample, media=text, stamp=_stamp(text), span=None)


def _text(labeled: Entry | Sample, name: str) -> str:
    text = labeled.attributes.get(name)
    # A text that was cut inside an emoji ends in half a surrogate pair, which can't be stored.
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else ""


def _stamp(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]

"""A source whose media is an attribute of another's samples: the captions of pictures, for a
modality that reads texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from latentkit.contracts import Entry, Remark, Sample, Shard, Source, StreamSource
from latentkit.runtime.source_remarks import remarks_of


def take_attribute(source: Source | StreamSource, name: str) -> Source | StreamSource:
    """Return the source with the text of an attribute as media; "" where there is none.

    Their own media is never opened, and a sample changes when its text does.
    """
    return (
        AttributeStream(source, name)
        if isinstance(source, StreamSource)
        else AttributeSource(source, name)
    )


class AttributeSource:
    """Samples by position; see `take_attribute`."""

    def __init__(self, source: Source, name: str) -> None:
        self._source, self._name = source, name

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        return _taken(self._source[index], self._name)

    def entries(self) -> Iterator[Entry]:
        """One entry per sample, whose stamp is a hash of the text."""
        return (
            replace(entry, stamp=_stamp(_text(entry, self._name)))
            for entry in self._source.entries()
        )

    def remarks(self) -> list[Remark]:
        """Those of the source below."""
        return remarks_of(self._source)


class AttributeStream:
    """Samples shard by shard; see `take_attribute`."""

    def __init__(self, source: StreamSource, name: str) -> None:
        self._source, self._name = source, name

    def shards(self) -> list[Shard]:
        return self._source.shards()

    def read(self, shard: Shard) -> Iterator[Sample]:
        return (_taken(sample, self._name) for sample in self._source.read(shard))

    def remarks(self) -> list[Remark]:
        """Those of the source below."""
        return remarks_of(self._source)


def _taken(sample: Sample, name: str) -> Sample:
    text = _text(sample, name)
    return replace(sample, media=text, stamp=_stamp(text), span=None)


def _text(labeled: Entry | Sample, name: str) -> str:
    text = labeled.attributes.get(name)
    # Half of a surrogate pair, as texts that were cut in an emoji end in, can't be written down.
    return text.encode("utf-8", "backslashreplace").decode() if isinstance(text, str) else ""


def _stamp(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]

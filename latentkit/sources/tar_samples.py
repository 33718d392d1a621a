"""Reads the samples of a tar, each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from latentkit.contracts import Entry, Sample, Shard
from latentkit.errors import SampleError
from latentkit.sources.files import Files
from latentkit.sources.media_choice import MediaChoice
from latentkit.sources.shards import (
    Group,
    TextNotes,
    choose_attributes,
    group_members,
    kind_of,
    read_attributes,
    read_media,
)
from latentkit.sources.tars import Member, Tar, list_members, open_tar


@dataclass(frozen=True)
class IndexedTar:
    """A tar whose samples are known.

    Args:
        stamp: size and modification time in ns.
        damage: what is wrong with it, or "".
        unnamed: files without an ending, which belong to no sample.
    """

    tar: Tar
    stamp: str
    groups: Sequence[Group]
    damage: str
    unnamed: Sequence[str]


def index_tar(files: Files, shard: Shard) -> IndexedTar:
    """List the samples of a tar.

    Raises:
        OSError: the tar can't be reached.
    """
    tar = open_tar(files, shard.name, shard.stamp)
    members, damage = list_members(tar)
    groups, unnamed = group_members(members)
    return IndexedTar(tar, shard.stamp, groups, damage, unnamed)


@dataclass(frozen=True)
class BadSample(Sample):
    """A sample of a stream that can't be used. Reading it raises the error."""

    reason: str = ""

    def read(self) -> bytes:
        """Raise SampleError with the reason."""
        raise SampleError(self.reason)

    def content(self) -> str:
        """Raise SampleError with the reason."""
        raise SampleError(self.reason)


class SampleReader:
    """Reads samples out of open tars.

    Args:
        choice: which file of a sample is its media.
        key, attributes: the recipe's options of these names.
    """

    def __init__(
        self, choice: MediaChoice, key: str | None, attributes: Sequence[str] | None
    ) -> None:
        self.choice, self._key, self._attributes = choice, key, attributes

    def sample(
        self, file: IO[bytes], group: Group, stamp: str, notes: TextNotes | None = None
    ) -> Sample:
        """Read a sample.

        Args:
            notes: takes what is found in the texts.

        Raises:
            SampleError: the sample has several media files, its media is cut off, or an attribute
                can't be read.
            OSError: the tar can't be reached.
        """
        media, key, attributes = self._describe(file, group, notes)
        return Sample(key, read_media(file, group, media), attributes, stamp)

    def members(self, group: Group) -> list[Member]:
        """Return the files of a sample that are read for it.

        Raises:
            SampleError: the sample has several media files.
        """
        media = self.choice.of(group)
        return [
            member
            for field, member in group.fields.items()
            if field == media or kind_of(field) != "bytes"
        ]

    def entry(self, file: IO[bytes], group: Group, stamp: str, notes: TextNotes) -> Entry:
        """Return the entry of a sample, without reading its media. A bad sample has another stamp.

        Raises:
            OSError: the tar can't be reached.
        """
        try:
            _, key, attributes = self._describe(file, group, notes)
        except SampleError as err:
            return Entry(group.key, f"{stamp} {err}")
        return Entry(key, stamp, attributes)

    def _describe(
        self, file: IO[bytes], group: Group, notes: TextNotes | None
    ) -> tuple[str, str, dict[str, Any]]:
        """Return the sample's media field, key and attributes: the attributes that the recipe
        names, or else all except the key.
        """
        media = self.choice.of(group) or ""
        values = read_attributes(file, group, notes)
        value = None if self._key in (None, "__key__") else values.get(str(self._key))
        key = group.key if value is None else str(value)
        if self._attributes is not None:
            return media, key, choose_attributes(file, group, values, self._attributes)
        return media, key, {name: value for name, value in values.items() if name != self._key}

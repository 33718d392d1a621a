"""Tars of samples as a source: by position, or shard by shard."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from latentkit.contracts import Entry, Remark, Sample, Shard
from latentkit.errors import SampleError
from latentkit.runtime.source_remarks import sum_remarks
from latentkit.sources.encodings import UTF8
from latentkit.sources.files import Files
from latentkit.sources.media_choice import MediaChoice, unused_fields
from latentkit.sources.shards import TextNotes, prefix_keys
from latentkit.sources.tables import encoding_remark
from latentkit.sources.tar_samples import BadSample, IndexedTar, SampleReader, index_tar

OTHER_CAPTION = (
    "samples whose .json has another caption than their text file, which is used;"
    " source.with.attributes=[text, json] keeps both"
)


class TarSource:
    """Samples in tars by position. A key that an earlier tar has too gets the tar's name."""

    def __init__(
        self, tars: Sequence[IndexedTar], reader: SampleReader, remarks: list[Remark]
    ) -> None:
        self._tars, self._reader, self._remarks = tars, reader, remarks
        self._places = [
            (number, place) for number, tar in enumerate(tars) for place in range(len(tar.groups))
        ]
        self._text_remarks: list[Remark] | None = None

    def part(self, positions: Iterable[int]) -> TarSource:
        """Return a source of the samples at some positions."""
        chosen = TarSource(self._tars, self._reader, self._remarks)
        chosen._places = [self._places[position] for position in positions]
        return chosen

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position. Errors are those of `SampleReader.sample`."""
        number, place = self._places[index]
        tar = self._tars[number]
        group = tar.groups[place]
        with tar.tar.open_part(self._reader.members(group)) as file:
            return self._reader.sample(file, group, self._stamp(tar, place))

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per sample, in order. Texts are read, media is not."""
        notes = TextNotes()
        for number, places in itertools.groupby(self._places, key=itemgetter(0)):
            tar = self._tars[number]
            with tar.tar.open() as file:
                for _, place in places:
                    stamp = self._stamp(tar, place)
                    yield self._reader.entry(file, tar.groups[place], stamp, notes)
        self._text_remarks = remark_on_texts(notes)

    def remarks(self) -> list[Remark]:
        """Return remarks on what is not used, or is read in an unexpected way."""
        if self._text_remarks is None:
            for _ in self.entries():
                pass
        return [*self._remarks, *(self._text_remarks or [])]

    @staticmethod
    def _stamp(tar: IndexedTar, place: int) -> str:
        return f"{tar.stamp}-{place}"


class TarStream:
    """The samples in tars, shard by shard. Keys start with the name of the tar."""

    def __init__(
        self,
        files: Files,
        shards: Sequence[Shard],
        reader: SampleReader,
        remarks: Sequence[Remark] = (),
    ) -> None:
        self._files, self._shards, self._reader, self._remarks = (
            files,
            list(shards),
            reader,
            list(remarks),
        )
        self._remarks_of: dict[str, list[Remark]] = {}

    def shards(self) -> list[Shard]:
        """Return all tars, in order. A stamp is the size and modification time in ns."""
        return list(self._shards)

    def read(self, shard: Shard) -> Iterator[Sample]:
        """Yield the samples of a tar, in order. A bad sample raises its error when it is read.

        Raises:
            OSError: the tar can't be reached.
            ValueError: not one of `shards`.
        """
        if shard not in self._shards:
            raise ValueError(f"{shard} is not in list of shards")
        indexed = index_tar(self._files, shard)
        self._remarks_of[shard.name] = remark_on_tars([indexed], self._reader.choice)
        with_media = (group for group in indexed.groups if self._reader.choice.candidates(group))
        notes = TextNotes()
        with indexed.tar.open() as file:
            for place, group in enumerate(prefix_keys(with_media, indexed.tar)):
                stamp = f"{shard.stamp}-{place}"
                try:
                    yield self._reader.sample(file, group, stamp, notes)
                except SampleError as err:
                    yield BadSample(group.key, b"", {}, stamp, reason=str(err))
        self._remarks_of[shard.name] += remark_on_texts(notes)

    def remarks(self) -> list[Remark]:
        """Return remarks on other files, and on what is wrong with the tars that were read."""
        of_tars = [one for name in sorted(self._remarks_of) for one in self._remarks_of[name]]
        return [*self._remarks, *sum_remarks(of_tars)]


def remark_on_tars(tars: Sequence[IndexedTar], choice: MediaChoice) -> list[Remark]:
    """Return remarks on what is wrong with tars, and on what is not used."""
    groups = [group for tar in tars for group in tar.groups]
    without = [group.key for group in groups if not choice.candidates(group)]
    text = "samples in tars that have no media of the kind that is read, left out"
    return [
        *_tar_remarks(tars),
        *unused_fields(groups, choice),
        *(Remark(text, len(without), key) for key in without[:1]),
    ]


def remark_on_texts(notes: TextNotes) -> list[Remark]:
    """Return remarks on the texts of samples that may surprise."""
    encodings = [
        encoding_remark(encoding, count, "")
        for encoding, count in sorted(notes.encodings.items())
        if encoding != UTF8
    ]
    others = notes.other_captions
    return encodings + [Remark(OTHER_CAPTION, len(others), key) for key in others[:1]]


def _tar_remarks(tars: Sequence[IndexedTar]) -> list[Remark]:
    empty = [tar.tar.name for tar in tars if not tar.groups and not tar.damage]
    unnamed = [f"{tar.tar.name}: {name}" for tar in tars for name in tar.unnamed]
    again = [group.key for tar in tars for group in tar.groups if re.search(r"#\d+$", group.key)]
    kinds = {
        "tars without any sample": empty,
        "files in tars that belong to no sample, having no ending": unnamed,
        "samples of a name that their tar has already, kept as name#2 and so on": again,
    }
    found = _damage_remarks([(tar.tar.name, tar.damage) for tar in tars if tar.damage])
    return found + [Remark(text, len(names), names[0]) for text, names in kinds.items() if names]


def _damage_remarks(damaged: Sequence[tuple[str, str]]) -> list[Remark]:
    return (
        [Remark("damaged tars, read as far as they go", len(damaged), ": ".join(damaged[0]))]
        if damaged
        else []
    )

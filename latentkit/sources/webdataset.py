"""Tars of samples on this machine as a source: by position, or shard by shard."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import IO, TYPE_CHECKING, Any

import datasets

from latentkit.contracts import BuildContext, Entry, ModalitySpec, Remark, Sample, Shard
from latentkit.errors import SampleError, SourceError
from latentkit.plugins import discover
from latentkit.runtime.cores import num_cores
from latentkit.runtime.file_endings import IMAGE_SUFFIXES, TAR_ENDINGS
from latentkit.runtime.source_remarks import sum_remarks
from latentkit.sources.encodings import UTF8
from latentkit.sources.files import Files
from latentkit.sources.shards import (
    Group,
    MediaChoice,
    choose_attributes,
    explain_no_media,
    group_members,
    kind_of,
    prefix_keys,
    read_attributes,
    read_media,
    unused_fields,
)
from latentkit.sources.splits import names_in
from latentkit.sources.tables import encoding_remark
from latentkit.sources.tars import Member, Tar, list_members, open_tar

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig


@dataclass(frozen=True)
class IndexedTar:
    """A tar whose samples are known.

    Args:
        stamp: size and time of change in ns.
        damage: what is wrong with it, or "".
        unnamed: files without an ending, which belong to no sample.
    """

    tar: Tar
    stamp: str
    groups: Sequence[Group]
    damage: str
    unnamed: Sequence[str]


@dataclass(frozen=True)
class BadSample(Sample):
    """A sample of a stream that can't be used; says so when it is read."""

    reason: str = ""

    def read(self) -> bytes:
        """Raises SampleError: the reason."""
        raise SampleError(self.reason)

    def content(self) -> str:
        """Raises SampleError: the reason."""
        raise SampleError(self.reason)


class SampleReader:
    """Reads samples out of open tars.

    Args:
        choice: which file of a sample is its media.
        key, attributes: as the recipe has them.
    """

    def __init__(
        self, choice: MediaChoice, key: str | None, attributes: Sequence[str] | None
    ) -> None:
        self.choice, self._key, self._attributes = choice, key, attributes

    def sample(self, file: IO[bytes], group: Group, stamp: str) -> Sample:
        """A sample.

        Raises:
            SampleError: its media is cut off, or an attribute can't be read.
            OSError: the tar can't be reached.
        """
        key, attributes = self._describe(file, group)
        return Sample(key, read_media(file, group, self.choice.of(group) or ""), attributes, stamp)

    def members(self, group: Group) -> list[Member]:
        """The files of a sample that are read for it."""
        media = self.choice.of(group)
        return [
            member
            for field, member in group.fields.items()
            if field == media or kind_of(field) != "bytes"
        ]

    def entry(self, file: IO[bytes], group: Group, stamp: str, encodings: Counter[str]) -> Entry:
        """What is known of a sample without its media; one that can't be used has another stamp.

        Raises:
            OSError: the tar can't be reached.
        """
        try:
            key, attributes = self._describe(file, group, encodings)
        except SampleError as err:
            return Entry(group.key, f"{stamp} {err}")
        return Entry(key, stamp, attributes)

    def _describe(
        self, file: IO[bytes], group: Group, encodings: Counter[str] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the sample's key and attributes: the attributes that the recipe names, or else all
        except the key. Text encodings that are found are counted in `encodings`.
        """
        values = read_attributes(file, group, encodings)
        value = None if self._key in (None, "__key__") else values.get(str(self._key))
        key = group.key if value is None else str(value)
        if self._attributes is not None:
            return key, choose_attributes(file, group, values, self._attributes)
        return key, {name: value for name, value in values.items() if name != self._key}


class TarSource:
    """Samples in tars by position; a key that an earlier tar has gets the tar's name."""

    def __init__(
        self, tars: Sequence[IndexedTar], reader: SampleReader, remarks: list[Remark]
    ) -> None:
        self._tars, self._reader, self._remarks = tars, reader, remarks
        self._places = [
            (number, place) for number, tar in enumerate(tars) for place in range(len(tar.groups))
        ]
        self._text_remarks: list[Remark] | None = None

    def part(self, positions: Iterable[int]) -> TarSource:
        """The samples at some positions."""
        chosen = TarSource(self._tars, self._reader, self._remarks)
        chosen._places = [self._places[position] for position in positions]
        return chosen

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position. Raises as `SampleReader.sample`."""
        number, place = self._places[index]
        tar = self._tars[number]
        group = tar.groups[place]
        with tar.tar.open_part(self._reader.members(group)) as file:
            return self._reader.sample(file, group, self._stamp(tar, place))

    def entries(self) -> Iterator[Entry]:
        """One entry per sample, in order; reads texts, no media."""
        encodings: Counter[str] = Counter()
        for number, places in itertools.groupby(self._places, key=itemgetter(0)):
            tar = self._tars[number]
            with tar.tar.open() as file:
                for _, place in places:
                    yield self._reader.entry(
                        file, tar.groups[place], self._stamp(tar, place), encodings
                    )
        del encodings[UTF8]
        self._text_remarks = [
            encoding_remark(encoding, count, "") for encoding, count in sorted(encodings.items())
        ]

    def remarks(self) -> list[Remark]:
        """What of the tars is not used, or is read otherwise than expected."""
        if self._text_remarks is None:
            for _ in self.entries():
                pass
        return [*self._remarks, *(self._text_remarks or [])]

    @staticmethod
    def _stamp(tar: IndexedTar, place: int) -> str:
        return f"{tar.stamp}-{place}"


class TarStream:
    """The samples in tars, shard by shard; keys begin with the name of the tar."""

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
        """All tars, in order; a stamp is size and time of change in ns."""
        return list(self._shards)

    def read(self, shard: Shard) -> Iterator[Sample]:
        """The samples of a tar, in their order; one that can't be used says so when it is read.

        Raises:
            OSError: the tar can't be reached.
            ValueError: not one of `shards`.
        """
        if shard not in self._shards:
            raise ValueError(f"{shard} is not in list of shards")
        indexed = index_tar(self._files, shard)
        self._remarks_of[shard.name] = _remarks_on([indexed], self._reader.choice)
        with_media = (
            group for group in indexed.groups if self._reader.choice.of(group) is not None
        )
        with indexed.tar.open() as file:
            for place, group in enumerate(prefix_keys(with_media, indexed.tar)):
                stamp = f"{shard.stamp}-{place}"
                try:
                    yield self._reader.sample(file, group, stamp)
                except SampleError as err:
                    yield BadSample(group.key, b"", {}, stamp, reason=str(err))

    def remarks(self) -> list[Remark]:
        """What lies beside the tars, and what is wrong with those that were read."""
        of_tars = [one for name in sorted(self._remarks_of) for one in self._remarks_of[name]]
        return [*self._remarks, *sum_remarks(of_tars)]


# ---------------------------------------------------------------- opening


def index_tar(files: Files, shard: Shard) -> IndexedTar:
    """The samples of a tar.

    Raises:
        OSError: it can't be reached.
    """
    tar = open_tar(files, shard.name, shard.stamp)
    members, damage = list_members(tar)
    groups, unnamed = group_members(members)
    return IndexedTar(tar, shard.stamp, groups, damage, unnamed)


def is_tar(path: str) -> bool:
    """Return whether a file's name says that it is a tar."""
    return path.lower().endswith(TAR_ENDINGS)


def open_tars(
    config: DatasetsConfig,
    context: BuildContext,
    files: Files,
    splits: dict[str, list[str]],
    remarks: Sequence[Remark] = (),
) -> TarSource | TarStream:
    """The source of tars.

    Args:
        files: that their names are of.
        splits: name of each split to the names of its tars, in order.
        remarks: on what lies beside them.

    Raises:
        SourceError: no tar of the split that the recipe asks for, none with media, or options that
            don't fit.
    """
    root = files.name("")
    endings = _endings(context.modality)
    choice = MediaChoice(config.media.lower() if config.media else None, endings)
    reader = SampleReader(choice, config.key, config.attributes)
    wanted = names_in(config.split)
    if missing := [name for name in wanted if name not in splits]:
        raise SourceError(
            f"source datasets: {root} has no split {missing[0]!r}; it has {', '.join(splits)}"
        )
    shards = {name: [Shard(tar, files.stamp(tar)) for tar in splits[name]] for name in wanted}
    try:
        if config.streaming:
            return _open_stream(files, shards[config.split], reader, root, remarks)
        with ThreadPoolExecutor(num_cores()) as threads:
            indexed = {
                name: list(threads.map(functools.partial(index_tar, files), shards[name]))
                for name in wanted
            }
    except OSError as err:
        raise SourceError(f"source datasets: {root}: a tar can't be read: {err}") from err
    except KeyError as err:
        raise SourceError(
            f"source datasets: split {config.split!r}: a stream has whole splits alone"
        ) from err
    return _open_source(indexed, reader, config, root, list(remarks))


def _open_stream(
    files: Files, shards: list[Shard], reader: SampleReader, root: str, remarks: Sequence[Remark]
) -> TarStream:
    """A stream, of whose tars one at least has media."""
    looked_at = []
    for shard in shards:
        indexed = index_tar(files, shard)
        looked_at.append(indexed)
        if any(reader.choice.of(group) is not None for group in indexed.groups):
            return TarStream(files, shards, reader, remarks)
    raise SourceError(_no_samples_message(looked_at, reader.choice, root))


def _open_source(
    indexed: dict[str, list[IndexedTar]],
    reader: SampleReader,
    config: DatasetsConfig,
    root: str,
    remarks: list[Remark],
) -> TarSource:
    choice = reader.choice
    tars = [tar for each in indexed.values() for tar in each]
    groups = [group for tar in tars for group in tar.groups]
    if all(choice.of(group) is None for group in groups):
        raise SourceError(_no_samples_message(tars, choice, root))
    _check_attributes(groups, config, root)
    remarks += _remarks_on(tars, choice)
    kept = {name: [_with_media(tar, choice) for tar in each] for name, each in indexed.items()}
    seen: set[str] = set()
    kept = {
        name: [replace(tar, groups=list(make_keys_unique(tar, seen))) for tar in each]
        for name, each in kept.items()
    }
    source = TarSource([tar for each in kept.values() for tar in each], reader, remarks)
    return source.part(
        _positions(
            config.split,
            {name: sum(len(tar.groups) for tar in each) for name, each in kept.items()},
        )
    )


def _positions(split: str, lengths: dict[str, int]) -> list[int]:
    """Return the positions of a split such as "train[:100]+test" among all splits."""
    starts = {name: sum(list(lengths.values())[:number]) for number, name in enumerate(lengths)}
    try:
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as err:
        raise SourceError(f"source datasets: split {split!r}: {err}") from err
    positions = [
        starts[part.splitname] + place for part in parts for place in range(part.from_, part.to)
    ]
    if not positions:
        raise SourceError(f"source datasets: split {split!r}: no data, no samples are in it")
    return positions


def make_keys_unique(tar: IndexedTar, seen: set[str]) -> Iterator[Group]:
    """Give a tar's samples, those of `seen` keys under ones that begin with its name."""
    for group in tar.groups:
        key = group.key
        while key in seen:
            key = f"{tar.tar.name}/{key}"
        seen.add(key)
        yield replace(group, key=key)


def _with_media(tar: IndexedTar, choice: MediaChoice) -> IndexedTar:
    return replace(tar, groups=[group for group in tar.groups if choice.of(group) is not None])


def _check_attributes(groups: Iterable[Group], config: DatasetsConfig, root: str) -> None:
    """Names of fields can be checked; those of what JSON objects hold can't, without
    reading all.
    """
    fields = {field for group in groups for field in group.fields}
    for name in config.attributes or []:
        if name in fields and kind_of(name) == "bytes":
            raise SourceError(
                f"source datasets: attributes: .{name} contains media or other bytes, not an"
                " attribute"
            )
        if name not in {*fields, "text"} and not any(kind_of(field) == "json" for field in fields):
            raise SourceError(
                f"source datasets: attributes: the column {name!r} is not there; {root} has"
                f" {', '.join(sorted(fields))}"
            )


def _endings(modality: str) -> tuple[str, ...]:
    """Endings of the files that the recipe's modality reads; where that doesn't say, of
    pictures.
    """
    found = [
        tuple(one.spec.suffixes)
        for one in discover().provided
        if isinstance(one.spec, ModalitySpec) and one.spec.name == modality
    ]
    return found[0] if found and found[0] else IMAGE_SUFFIXES


def _no_samples_message(tars: Sequence[IndexedTar], choice: MediaChoice, root: str) -> str:
    damaged = [f"{os.path.join(root, tar.tar.name)}: {tar.damage}" for tar in tars if tar.damage]
    if not any(tar.groups for tar in tars):
        unnamed = [
            f"{os.path.join(root, tar.tar.name)}: {len(tar.unnamed)} files without an ending, by"
            f" which they would be known, such as {tar.unnamed[0]}"
            for tar in tars
            if tar.unnamed
        ]
        what = (
            "; ".join([*damaged, *unnamed][:3])
            or f"no files in {', '.join(os.path.join(root, tar.tar.name) for tar in tars[:3])}"
        )
        return f"source datasets: there is nothing to read: {what}"
    return (
        f"source datasets: {root}:"
        f" {explain_no_media((group for tar in tars for group in tar.groups), choice)}"
    ) + "".join(f"; {one}" for one in damaged[:3])


def _remarks_on(tars: Sequence[IndexedTar], choice: MediaChoice) -> list[Remark]:
    """Count what is wrong with tars, and what of them is not used."""
    groups = [group for tar in tars for group in tar.groups]
    without = [group.key for group in groups if choice.of(group) is None]
    text = "samples in tars that have no media of the kind that is read, left out"
    return [
        *_tar_remarks(tars),
        *unused_fields(groups, choice),
        *(Remark(text, len(without), key) for key in without[:1]),
    ]


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

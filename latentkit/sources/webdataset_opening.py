"""Opens the source of tars that a recipe names."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import datasets

from latentkit.contracts import BuildContext, ModalitySpec, Remark, Shard
from latentkit.errors import SourceError
from latentkit.plugins import discover
from latentkit.runtime.cores import num_cores
from latentkit.runtime.file_endings import IMAGE_SUFFIXES
from latentkit.sources.files import Files
from latentkit.sources.media_choice import MediaChoice, explain_no_media
from latentkit.sources.shards import Group, kind_of
from latentkit.sources.splits import names_in
from latentkit.sources.tar_samples import IndexedTar, SampleReader, index_tar
from latentkit.sources.webdataset import TarSource, TarStream, remark_on_tars

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig


def open_tars(
    config: DatasetsConfig,
    context: BuildContext,
    files: Files,
    splits: dict[str, list[str]],
    remarks: Sequence[Remark] = (),
) -> TarSource | TarStream:
    """Return the source of tars.

    Args:
        files: the files that contain the tars.
        splits: name of each split to the names of its tars, in order.
        remarks: remarks on what lies beside them.

    Raises:
        SourceError: no tar of the split that the recipe asks for, none with media, or options that
            don't fit.
    """
    root = files.name("")
    endings = _endings(context.modality)
    choice = MediaChoice(config.media.lower() if config.media else None, endings)
    wanted = names_in(config.split)
    if missing := [name for name in wanted if name not in splits]:
        raise SourceError(
            f"source datasets: {root} has no split {missing[0]!r}; it has {', '.join(splits)}"
        )
    shards = {name: [Shard(tar, files.stamp(tar)) for tar in splits[name]] for name in wanted}
    try:
        if config.streaming:
            return _open_stream(files, shards[config.split], choice, config, remarks)
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
    return _open_source(indexed, choice, config, root, list(remarks))


def _open_stream(
    files: Files,
    shards: list[Shard],
    choice: MediaChoice,
    config: DatasetsConfig,
    remarks: Sequence[Remark],
) -> TarStream:
    """Return a stream of tars; the first ones, up to one with media, decide what is media."""
    looked_at: list[IndexedTar] = []
    for shard in shards:
        looked_at.append(index_tar(files, shard))
        groups = [group for tar in looked_at for group in tar.groups]
        fitted = choice.fit(groups)
        if fitted.decides(groups):
            reader = SampleReader(fitted, config.key, config.attributes)
            return TarStream(files, shards, reader, remarks)
    raise SourceError(_no_samples_message(looked_at, choice, files.name("")))


def _open_source(
    indexed: dict[str, list[IndexedTar]],
    choice: MediaChoice,
    config: DatasetsConfig,
    root: str,
    remarks: list[Remark],
) -> TarSource:
    tars = [tar for each in indexed.values() for tar in each]
    groups = [group for tar in tars for group in tar.groups]
    choice = choice.fit(groups)
    if not choice.decides(groups):
        raise SourceError(_no_samples_message(tars, choice, root))
    _check_attributes(groups, config, root)
    remarks += remark_on_tars(tars, choice)
    kept = {name: [_with_media(tar, choice) for tar in each] for name, each in indexed.items()}
    seen: set[str] = set()
    kept = {
        name: [replace(tar, groups=list(make_keys_unique(tar, seen))) for tar in each]
        for name, each in kept.items()
    }
    reader = SampleReader(choice, config.key, config.attributes)
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
    """Return a tar's samples; a key in `seen` is replaced by one that starts with the tar's name.
    """
    for group in tar.groups:
        key = group.key
        while key in seen:
            key = f"{tar.tar.name}/{key}"
        seen.add(key)
        yield replace(group, key=key)


def _with_media(tar: IndexedTar, choice: MediaChoice) -> IndexedTar:
    return replace(tar, groups=[group for group in tar.groups if choice.candidates(group)])


def _check_attributes(groups: Iterable[Group], config: DatasetsConfig, root: str) -> None:
    """Check that the attributes exist, except those that a JSON object may contain."""
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
    """Return the endings of files that the recipe's modality reads; if unknown, those of images."""
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
        f" {explain_no_media([group for tar in tars for group in tar.groups], choice)}"
    ) + "".join(f"; {one}" for one in damaged[:3])

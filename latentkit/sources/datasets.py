"""Opens what a recipe of the source `datasets` names: anything that the library `datasets` opens.

Sources by position keep one Arrow copy of parquet, csv, json and tar files in the library's cache.
Streams copy nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets

from latentkit.contracts import BuildContext, Remark, Shard
from latentkit.errors import SourceError
from latentkit.runtime.hub_places import HubPlace
from latentkit.runtime.paths import find_file_path
from latentkit.sources.columns import choose_columns, remark_unused_columns
from latentkit.sources.dataset_rows import (
    CONTENT_ERRORS,
    ROWS_PER_READ,
    UNREACHABLE_ERRORS,
    DatasetsSource,
    DatasetsStream,
    root_cause,
)
from latentkit.sources.endings import describe_options, is_clutter
from latentkit.sources.files import LocalFiles
from latentkit.sources.hub_data import builder_options, explain_hub_failure, find_hub_data
from latentkit.sources.local_data import list_files, open_local
from latentkit.sources.path_table import PathTable
from latentkit.sources.remote_data import BUILDERS, RemoteData, find_remote, open_remote
from latentkit.sources.splits import remark_other_splits
from latentkit.sources.webdataset import TarSource, TarStream

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

DESCRIPTIONS = ("README.md", "LICENSE", "dataset_info.json", "dataset_infos.json")
"""Files that describe a dataset and contain none of its data."""


@dataclass(frozen=True)
class Origin:
    """Where a dataset is: `local` for an existing file or folder, `place` on the hub, `remote` for
    files at a URL.
    """

    path: str
    local: Path | None
    place: HubPlace | None = None
    remote: RemoteData | None = None
    is_listed: bool = False


def open_datasets(
    config: DatasetsConfig, context: BuildContext
) -> DatasetsSource | DatasetsStream | TarSource | TarStream | PathTable:
    """Return the dataset of a recipe: a `StreamSource` if `streaming` is set, else a `Source`. A
    table whose rows name files is always a `Source`.

    Raises:
        SourceError: the path, hub id or split doesn't exist, files can't be read, the hub can't be
            reached, or columns don't fit the recipe.
    """
    config = _file_urls_to_paths(config)
    if (remote := find_remote(config)) is not None:
        return open_remote(config, context, remote) or _open_by_library(
            config, Origin(remote.files.url, None, remote=remote), None
        )
    files = list_files(config, context.recipe_dir)
    if (local := open_local(config, context)) is not None:
        return local
    if files is None:
        origin = _find_origin(str(config.path), config, context.recipe_dir)
    else:
        folder = Path(os.path.commonpath([file.parent for file in files]))
        origin = Origin(str(config.path), folder, is_listed=True)
    return _open_by_library(config, origin, files)


def _file_urls_to_paths(config: DatasetsConfig) -> DatasetsConfig:
    """Return the config with file:// URLs replaced by paths."""
    path = config.path
    paths = (
        (find_file_path(path) or path)
        if isinstance(path, str)
        else [find_file_path(one) or one for one in path]
    )
    return config.model_copy(update={"path": paths})


def _open_by_library(
    config: DatasetsConfig, origin: Origin, files: list[Path] | None
) -> DatasetsSource | DatasetsStream:
    """Open a dataset with the library `datasets`; `files` are those of a pattern or a list."""
    try:
        if origin.local is not None and _is_saved(origin.local):
            return _open_saved(config, origin.local)
        builder = _make_builder(config, origin, files)
        if config.streaming:
            return _open_stream(config, builder, origin)
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=config.split)
        columns, fingerprint = choose_columns(dataset.features, config), dataset._fingerprint
        counts = {name: split.num_examples for name, split in (builder.info.splits or {}).items()}
        remarks = remark_other_splits(counts, config.split, "rows")
        remarks += _remark_beside(builder, origin)
        remarks += remark_unused_columns(dataset.features, columns, config)
        if origin.remote is not None:
            fingerprint = _digest([config.split, origin.remote.digest])
        return DatasetsSource(dataset, columns, fingerprint, remarks)
    except (*CONTENT_ERRORS, *UNREACHABLE_ERRORS) as err:
        reason = explain_hub_failure(err, origin.place) or root_cause(err)
        raise SourceError(
            f"source datasets: can't open {origin.path}, split {config.split!r}: {reason}"
        ) from err


def _find_origin(path: str, config: DatasetsConfig, recipe_dir: Path) -> Origin:
    """Return where the dataset `path` is: on this machine or on the hub."""
    local = (recipe_dir / Path(path).expanduser()).resolve()
    if local.exists():
        return Origin(str(local), local)
    if path.startswith((".", "/", "~")):
        raise SourceError(f"source datasets: {local} does not exist")
    place = find_hub_data(path, config.revision, local)
    return Origin(place.repository, None, place)


def _is_saved(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _open_saved(config: DatasetsConfig, path: Path) -> DatasetsSource:
    """Open what `save_to_disk` wrote, in place."""
    if config.streaming:
        raise SourceError(
            f"source datasets: {path} was written by save_to_disk and is read in place. Leave the"
            " option streaming out"
        )
    loaded = datasets.load_from_disk(str(path))
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    counts = {name: len(split) for name, split in splits.items()}
    parts = datasets.ReadInstruction.from_spec(config.split).to_absolute(counts)
    chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
    dataset = datasets.concatenate_datasets(chosen) if len(chosen) > 1 else chosen[0]
    files = sorted({file["filename"] for split in splits.values() for file in split.cache_files})
    stamps = [[os.path.relpath(file, path), LocalFiles(Path()).stamp(file)] for file in files]
    columns = choose_columns(dataset.features, config)
    remarks = remark_other_splits(counts, config.split, "rows")
    remarks += remark_unused_columns(dataset.features, columns, config)
    return DatasetsSource(dataset, columns, _digest([config.split, *stamps]), remarks)


def _make_builder(
    config: DatasetsConfig, origin: Origin, files: list[Path] | None
) -> datasets.DatasetBuilder:
    """Return the library's builder for a dataset; `files` are those of a pattern or a list."""
    if origin.remote is not None:
        return origin.remote.open_builder()
    if origin.place is not None:
        options = builder_options(origin.place, (*BUILDERS, ".tar"))
        return datasets.load_dataset_builder(origin.path, name=config.name, **options)
    if files is None and (origin.local is None or origin.local.is_dir()):
        return datasets.load_dataset_builder(
            origin.path, name=config.name, revision=config.revision
        )
    names = [origin.path] if files is None else [str(file) for file in files]
    suffix = os.path.splitext(names[0])[1].lower()
    if suffix not in BUILDERS:
        what = describe_options(suffix)
        raise SourceError(
            f"source datasets: {origin.path} ends in none of {', '.join(BUILDERS)}; give its"
            f" folder, or another file{f' ({suffix}: {what})' if what else ''}"
        )
    options = {"sep": "\t"} if suffix == ".tsv" else {}
    return datasets.load_dataset_builder(BUILDERS[suffix], data_files={"train": names}, **options)


def _remark_beside(builder: datasets.DatasetBuilder, origin: Origin) -> list[Remark]:
    """Count the files in a folder that the library doesn't read as data, because of their names."""
    if origin.remote is not None:
        return list(origin.remote.remarks)
    place = origin.local
    if place is None or origin.is_listed or not place.is_dir():
        return []
    files = (builder.config.data_files or {}).values()
    read = {os.path.realpath(one) for each in files for one in each}
    left = [
        name
        for name in sorted(LocalFiles(place).list(recursive=True).files)
        if os.path.realpath(place / name) not in read
        and not (is_clutter(name) or name in DESCRIPTIONS)
    ]
    text = "files beside those of the data, not read"
    return [Remark(text, len(left), name) for name in left[:1]]


def _open_stream(
    config: DatasetsConfig, builder: datasets.DatasetBuilder, origin: Origin
) -> DatasetsStream:
    """Open a dataset as a stream of shards."""
    stream = builder.as_streaming_dataset(split=config.split)
    if stream.features is None:  # the types of a csv are unknown before it is read
        features = datasets.Dataset.from_list(
            list(itertools.islice(stream, ROWS_PER_READ))
        ).features
    else:
        features = stream.features
        stream = stream.decode(False)
    columns = choose_columns(features, config)
    files = (builder.config.data_files or {}).get(config.split)
    stamps = (
        [
            _data_file_stamp(file, version)
            for file, version in zip(files, files.origin_metadata, strict=True)
        ]
        if files
        else []
    )
    names = [_shard_name(file, origin) for file in files or ()]
    if origin.remote is not None and config.split in origin.remote.splits:
        names = origin.remote.splits[config.split]
        stamps = [origin.remote.files.stamp(name) for name in names]
    if names and len(names) == stream.num_shards:
        shards = [Shard(name, stamp) for name, stamp in zip(names, stamps, strict=True)]
    else:
        shards = [
            Shard(f"{number:05d}", _digest([*stamps, number]))
            for number in range(stream.num_shards)
        ]
    counts = {name: len(files) for name, files in (builder.config.data_files or {}).items()}
    remarks = remark_other_splits(counts, config.split, "files") + _remark_beside(builder, origin)
    remarks += remark_unused_columns(features, columns, config)
    return DatasetsStream(stream.select_columns(columns.names()), columns, shards, remarks)


def _shard_name(file: str, origin: Origin) -> str:
    """Return a data file's path inside its dataset, with "/"."""
    if origin.local is None:
        return (
            file.rsplit("@", 1)[-1].partition("/")[2] or file
        )  # hf://datasets/owner/name@revision/path
    return (
        Path(file).relative_to(origin.local).as_posix()
        if origin.local.is_dir()
        else origin.local.name
    )


def _data_file_stamp(file: str, version: tuple[str, ...]) -> str:
    """Return a local file's stamp, or the dataset's version for a remote file."""
    return LocalFiles(Path()).stamp(file) if os.path.isfile(file) else "-".join(version)


def _digest(parts: list[Any]) -> str:
    """Return a short hash of some values."""
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]

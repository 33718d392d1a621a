"""Opens local tars and tables of paths for the source `datasets`; the library reads the rest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentkit.contracts import BuildContext, Remark
from latentkit.errors import SourceError
from latentkit.runtime.file_endings import TAR_ENDINGS
from latentkit.sources.files import LocalFiles
from latentkit.sources.path_table import PathTable, open_path_table
from latentkit.sources.patterns import find_matches, is_pattern
from latentkit.sources.splits import remark_other_splits, split_files
from latentkit.sources.tars import is_tar
from latentkit.sources.webdataset import TarSource, TarStream
from latentkit.sources.webdataset_opening import open_tars

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

SIDECAR_ENDINGS = (
    ".json",
    ".jsonl",
    ".txt",
    ".md",
    ".yaml",
    ".yml",
    ".csv",
    ".tsv",
    ".idx",
    ".log",
)
"""Endings of files that often accompany tars and describe them."""


def open_local(
    config: DatasetsConfig, context: BuildContext
) -> TarSource | TarStream | PathTable | None:
    """Return the source of tars, or of a table whose rows name files; None for anything else.

    Raises:
        SourceError: the files can't be read, or the recipe doesn't fit them.
    """
    files = list_files(config, context.recipe_dir)
    if files is not None:
        if not all(is_tar(str(file)) for file in files):
            return None
        root = Path(os.path.commonpath([file.parent for file in files]))
        return open_tars(
            config,
            context,
            LocalFiles(root),
            {"train": [file.relative_to(root).as_posix() for file in files]},
        )
    place = (context.recipe_dir / Path(str(config.path)).expanduser()).absolute()
    if place.is_file():
        if is_tar(place.name):
            return open_tars(config, context, LocalFiles(place.parent), {"train": [place.name]})
        return open_path_table(config, LocalFiles(place.parent), place.name)
    return _open_folder(config, context, place) if place.is_dir() and config.name is None else None


def list_files(config: DatasetsConfig, recipe_dir: Path) -> list[Path] | None:
    """Return the files of a pattern or a list; None if `path` is one path or a hub id.

    Raises:
        SourceError: a pattern matches no file, or the files are of several kinds.
    """
    if isinstance(config.path, str) and (
        not is_pattern(config.path) or (recipe_dir / config.path).exists()
    ):
        return None
    files = [path for path in find_matches(config.path, recipe_dir) if path.is_file()]
    kinds = Counter("tar" if is_tar(file.name) else file.suffix.lower() for file in files)
    if len(kinds) != 1:
        found = ", ".join(f"{kind} ({count})" for kind, count in kinds.items()) or "only folders"
        raise SourceError(
            f"source datasets: {config.path}: expected files of one kind, got {found}. Write a"
            " narrower pattern"
        )
    return files


def _open_folder(
    config: DatasetsConfig, context: BuildContext, place: Path
) -> TarSource | TarStream | PathTable | None:
    """Open a folder's tars by split, unless it contains more files of other data; or its only file,
    if that is a table of paths.
    """
    found = sorted(LocalFiles(place).list(recursive=True).files)
    tars, others = (
        [name for name in found if is_tar(name)],
        [name for name in found if not is_tar(name)],
    )
    if len(others) == 1 and not tars:
        return open_path_table(config, LocalFiles(place), others[0])
    if not tars or outnumber_tars(others, tars):
        return None
    remarks = [Remark("other files than tars, not read", len(others), others[0])] if others else []
    splits = split_files(tars)
    counts = {name: len(files) for name, files in splits.items()}
    remarks += remark_other_splits(counts, config.split, "tars")
    return open_tars(config, context, LocalFiles(place), splits, remarks)


def outnumber_tars(others: Sequence[str], tars: Sequence[str]) -> bool:
    """Return whether there are more data files of another kind than tars. A file with a tar's name
    describes that tar and doesn't count.
    """
    stems = {_stem(name) for name in tars}
    kinds = Counter(
        os.path.splitext(name)[1].lower()
        for name in others
        if _stem(name) not in stems and not name.lower().endswith(SIDECAR_ENDINGS)
    )
    return bool(kinds) and kinds.most_common(1)[0][1] > len(tars)


def _stem(name: str) -> str:
    """Return the name without its ending."""
    ending = next(
        (ending for ending in TAR_ENDINGS if name.lower().endswith(ending)),
        os.path.splitext(name)[1],
    )
    return name[: len(name) - len(ending)]

"""Source `folder`: files below a folder, in the order of their relative paths, with captions from tables, sidecars and class folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, Entry, Remark, Sample
from latentkit.errors import SourceError
from latentkit.overrides import find_file_path, is_url
from latentkit.sources.captions import CAPTION_SUFFIX, read_caption
from latentkit.sources.files import Files, LocalFiles
from latentkit.sources.tables import TABLE_NAMES, read_tables

if TYPE_CHECKING:
    from latentkit.builtin import FolderConfig


@dataclass(frozen=True, slots=True)
class MediaFile:
    """One file: its key, its path relative to the folder, its stamp, and the path of its caption, or "" for none."""

    key: str
    path: str
    stamp: str
    caption: str


class FolderSource:
    """Samples whose key is their relative path with "/", whose media is their path and whose stamp is size and time of change in ns.

    Attributes are "label" (name of the file's folder, where that is not `path` itself), "text" (from `name.txt` beside `name.jpg`), and the
    columns of `metadata.jsonl` and `metadata.csv`, which win over both. Texts of a .csv stay texts; nested values become JSON.

    Raises:
        SourceError: no such folder, no file in it with one of the suffixes, a link to nothing, or a table that does not fit the files.
    """

    def __init__(self, config: FolderConfig, context: BuildContext) -> None:
        self._folder = _open_files(config.path, context.recipe_dir)
        scan = _Scan(self._folder, config)
        self._files = scan.files
        self._columns = read_tables(self._folder, scan.tables, {file.path for file in scan.files}, scan.others)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position; its media is a `Path`.

        Raises:
            SourceError: its caption is not UTF-8 text, or is gone.
        """
        file = self._files[index]
        return Sample(file.key, self._folder.media(file.path), self._attributes(file), file.stamp)

    def entries(self) -> Iterator[Entry]:
        """One entry per file, in order; reads captions, opens no media.

        Raises:
            SourceError: a caption is not UTF-8 text, or is gone.
        """
        return (Entry(file.key, file.stamp, self._attributes(file)) for file in self._files)

    def remarks(self) -> Iterable[Remark]:
        """What was found and is not used."""
        return []

    def _attributes(self, file: MediaFile) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        folder = os.path.dirname(file.path)
        if folder:
            attributes["label"] = _storable(os.path.basename(folder))
        columns = self._columns.get(file.path, {})
        if file.caption and "text" not in columns:
            attributes["text"] = read_caption(self._folder, file.caption)
        return attributes | columns


def _open_files(path: str, recipe_dir: Path) -> Files:
    """The files at a path, which is relative to the recipe's folder, or at a URL."""
    local = find_file_path(path)
    if local is None and is_url(path):
        from latentkit.sources.url_files import UrlFiles

        return UrlFiles(path)
    return LocalFiles((recipe_dir / Path(local or path).expanduser()).absolute())


# ---------------------------------------------------------------- files


class _Scan:
    """What one pass over a folder finds: the media files by key, the tables, and the others."""

    def __init__(self, folder: Files, config: FolderConfig) -> None:
        self._folder = folder
        self._suffixes = tuple(suffix.lower() for suffix in config.suffixes)
        table_names = TABLE_NAMES if config.metadata is None else (config.metadata,)
        self.listing = folder.list(config.recursive)
        media = [path for path in self.listing.files if _file_name(path).lower().endswith(self._suffixes)]
        self.others = set(self.listing.files).difference(media)
        self.tables = [path for path in self.others if _file_name(path) in table_names]
        if not media:
            raise SourceError(self._why_empty(config))
        if config.metadata is not None and not self.tables:
            raise SourceError(f"source folder: no file named {config.metadata} in {folder.name('')}, as metadata asks for")
        self.files = sorted((self._media_file(path) for path in media), key=lambda file: file.key)

    def _media_file(self, path: str) -> MediaFile:
        suffix = max((suffix for suffix in self._suffixes if path.lower().endswith(suffix)), key=len)
        caption = path[: -len(suffix)] + CAPTION_SUFFIX
        return MediaFile(_storable(path), path, self._folder.stamp(path), caption if caption in self.others else "")

    def _why_empty(self, config: FolderConfig) -> str:
        endings = Counter(os.path.splitext(path)[1].lower() or "no suffix" for path in self.others.difference(self.tables))
        others = ", ".join(f"{suffix} ({count})" for suffix, count in endings.most_common(6))
        depth = "below" if config.recursive else "directly in"
        return f"source folder: no file {depth} {self._folder.name('')} ends in {', '.join(config.suffixes)}; " + (
            f"others there: {others}; name the ones to take in source.with.suffixes" if others else "there are no other files either"
        )


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _storable(path: str) -> str:
    r"""A path as text that any file can store; different for every path: a byte that is not UTF-8 becomes `\xff`, a backslash two."""
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")

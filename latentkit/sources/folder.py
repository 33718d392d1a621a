"""Source `folder`: files below a folder, in the order of their relative paths, with captions from
tables, caption files and class folders.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentkit.contracts import BuildContext, Entry, Remark, Sample
from latentkit.contracts.samples import one_line
from latentkit.errors import SampleError, SourceError
from latentkit.runtime.file_endings import TABLE_ENDINGS, is_table
from latentkit.runtime.paths import find_file_path, is_url
from latentkit.runtime.source_remarks import sum_remarks
from latentkit.sources.captions import (
    CAPTION_COLUMNS,
    NO_SIDECARS,
    RECORD_ENDING,
    TEXT_ENDINGS,
    CaptionContent,
    SidecarFiles,
    SidecarIndex,
    read_sidecars,
)
from latentkit.sources.encodings import UTF8
from latentkit.sources.endings import (
    describe_options,
    ending_of,
    explain_ending,
    is_clutter,
    list_few,
)
from latentkit.sources.files import Files, LocalFiles
from latentkit.sources.tables import (
    MAX_TABLES,
    TABLE_NAMES,
    FileNames,
    encoding_remark,
    read_tables,
)

if TYPE_CHECKING:
    from latentkit.sources.options import FolderConfig

TOO_MANY_TABLES = (
    f"tables not read, because there are more than {MAX_TABLES}; name one in source.with.metadata"
)

NO_CAPTION = f"JSON files beside media without a caption ({', '.join(CAPTION_COLUMNS[:4])} ...)"


@dataclass(frozen=True, slots=True)
class MediaFile:
    """One media file: its key, relative path, stamp and caption files."""

    key: str
    path: str
    stamp: str
    sidecars: SidecarFiles


class FolderSource:
    """Samples whose key is the relative path with "/", whose media is the path and whose stamp is
    the size and modification time in ns.

    Attributes are "label" (name of the file's folder, unless that is `path` itself), "text" (the
    caption) and others from caption files, and the columns of tables, which take precedence; see
    `sources.captions` and `sources.tables`. Texts in a .csv stay texts; nested values become JSON.
    A file whose caption can't be read is a bad sample, with another stamp than with a readable one.

    Raises:
        SourceError: the folder doesn't exist, no file has one of the suffixes, a link is broken, or
            a table doesn't fit the files.
    """

    def __init__(self, config: FolderConfig, context: BuildContext) -> None:
        self.folder = _open_files(config.path, context.recipe_dir)
        scan = _Scan(self.folder, config)
        self._files = scan.files
        names = FileNames(scan.stems, scan.others, self.folder.name(""))
        tables = read_tables(self.folder, scan.tables, names, must_fit=scan.table_names)
        self._columns = tables.columns
        self._remarks = sum_remarks([*tables.remarks, *scan.remarks()])
        self._caption_remarks: list[Remark] | None = None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        """Return the sample at a position; its media is a `Path`.

        Raises:
            SampleError: its caption can't be read or is missing.
        """
        file = self._files[index]
        return Sample(
            file.key, self.folder.media(file.path), self._read_captions(file).attributes, file.stamp
        )

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per file, in order. Captions are read, media isn't opened.

        Raises:
            SourceError: a caption can't be reached.
        """
        encodings: Counter[str] = Counter()
        examples: dict[str, str] = {}
        unused: list[str] = []
        for file in self._files:
            try:
                content = self._read_captions(file)
            except SampleError as err:
                yield Entry(file.key, f"{file.stamp} {err}")
                continue
            except OSError as err:
                raise SourceError(
                    f"source folder: the caption of {self.folder.name(file.path)} can't be read:"
                    f" {err}"
                ) from err
            for path, encoding in content.encodings:
                encodings[encoding] += 1
                examples.setdefault(encoding, path)
            unused += [content.unused] * bool(content.unused)
            yield Entry(file.key, file.stamp, content.attributes)
        del encodings[UTF8]
        self._caption_remarks = [
            encoding_remark(one, count, examples[one]) for one, count in sorted(encodings.items())
        ] + [Remark(NO_CAPTION, len(unused), path) for path in unused[:1]]

    def remarks(self) -> Iterable[Remark]:
        """Return remarks on what was found but not used, or read in an unexpected way."""
        if self._caption_remarks is None:
            for _ in self.entries():
                pass
        return sum_remarks([*self._remarks, *(self._caption_remarks or [])])

    def _read_captions(self, file: MediaFile) -> CaptionContent:
        """Return a file's attributes from its folder, caption files and tables."""
        folder = os.path.dirname(file.path)
        label = {"label": _storable(os.path.basename(folder))} if folder else {}
        content = (
            CaptionContent()
            if file.sidecars is NO_SIDECARS
            else read_sidecars(self.folder, file.sidecars)
        )
        content.attributes = label | content.attributes | self._columns.get(file.path, {})
        return content


def _open_files(path: str, recipe_dir: Path) -> Files:
    """Return the files at a path, relative to the recipe's folder, or at a URL."""
    local = find_file_path(path)
    if local is None and is_url(path):
        from latentkit.sources.url_files import UrlFiles

        return UrlFiles(path)
    return LocalFiles((recipe_dir / Path(local or path).expanduser()).absolute())


# ---------------------------------------------------------------- files


class _Scan:
    """Result of one pass over a folder: the media files, the tables and all others."""

    def __init__(self, folder: Files, config: FolderConfig) -> None:
        self._folder = folder
        suffixes = tuple(suffix.lower() for suffix in config.suffixes)
        self.table_names = TABLE_NAMES if config.metadata is None else (config.metadata,)
        self.listing = folder.list(config.recursive)
        media = [path for path in self.listing.files if _file_name(path).lower().endswith(suffixes)]
        self.stems = {
            path: path[: -max(len(one) for one in suffixes if path.lower().endswith(one))]
            for path in media
        }
        self.others = set(self.listing.files).difference(media)
        if not media:
            raise SourceError(self._no_files_message(config))
        self.sidecars = SidecarIndex(self.stems, self.others)
        self.files = sorted((self._media_file(path) for path in media), key=lambda file: file.key)
        self.too_many_tables: list[str] = []
        self.tables = self._find_tables(config.metadata)

    def remarks(self) -> list[Remark]:
        """Return remarks on what the pass found but doesn't use."""
        texts = [
            path
            for path in self.sidecars.unused
            if not path.lower().endswith(".json") and path not in self.tables
        ]
        kinds = {
            "captions not used, because the file has another one": sorted(
                set(self.sidecars.passed_over)
            ),
            "captions that belong to no media file": texts,
            TOO_MANY_TABLES: self.too_many_tables,
            "hidden (name starts with a dot), so not read": sorted(self.listing.hidden),
            "folders with a latent dataset, not searched": sorted(self.listing.latent_datasets),
            **self._left_out(),
        }
        kinds = {
            text: [path for path in paths if not is_clutter(path)] for text, paths in kinds.items()
        }
        return [
            Remark(text, len(paths), _storable(paths[0])) for text, paths in kinds.items() if paths
        ]

    def _left_out(self) -> dict[str, list[str]]:
        """Return the files that are neither media, captions nor tables, in order, by the remark on
        them.
        """
        others = (*TEXT_ENDINGS, RECORD_ENDING, *TABLE_ENDINGS)  # which have their own remarks
        found: dict[str, list[str]] = {}
        for path in sorted(self.others):
            ending = ending_of(path)
            if ending not in others:
                what = explain_ending(ending)
                ended = (
                    f"left out because of their ending {one_line(ending)}"
                    if ending
                    else "left out because they have no ending"
                )
                found.setdefault(ended + (f": {what}" if what else ""), []).append(path)
        return found

    def _media_file(self, path: str) -> MediaFile:
        sidecars = self.sidecars.of(path, self.stems[path])
        return MediaFile(_storable(path), path, self._folder.stamp(path), sidecars)

    def _find_tables(self, wanted: str | None) -> list[str]:
        """Return relative paths of the tables: those that the recipe names, or else all that aren't
        notes on single files.
        """
        if wanted is not None:
            named = [path for path in self.others if wanted in (path, _file_name(path))]
            if not named:
                raise SourceError(
                    f"source folder: metadata names {wanted}, but {self._folder.name('')} contains"
                    " no such file"
                )
            return named
        notes = {*self.stems, *self.stems.values()}
        tables = [path for path in self.others if is_table(path)]
        known = [path for path in tables if _file_name(path) in self.table_names]
        others = sorted(
            path for path in tables if path not in known and os.path.splitext(path)[0] not in notes
        )
        if len(others) > MAX_TABLES:
            self.too_many_tables = others
        return known + others * (len(others) <= MAX_TABLES)

    def _no_files_message(self, config: FolderConfig) -> str:
        """Return a message that no file has one of the suffixes, with the endings found."""
        others = (path for path in self.others if _file_name(path) not in self.table_names)
        endings = Counter(ending_of(path) or "no suffix" for path in others)
        there = ", ".join(f"{suffix} ({count})" for suffix, count in endings.most_common(6))
        advice = next(
            (
                f"{one}: {how}; "
                for one, _ in endings.most_common()
                if (how := describe_options(one))
            ),
            "",
        )
        depth = "below" if config.recursive else "directly in"
        wanted = list_few(config.suffixes)
        return f"source folder: no file {depth} {self._folder.name('')} ends in {wanted}; " + (
            f"others there: {there}; {advice}name the ones to use in source.with.suffixes"
            if there
            else "there are no other files either"
        )


def _file_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _storable(path: str) -> str:
    r"""Return a path as text that any file can store, different for every path: a byte that is not
    UTF-8 becomes `\xff`, a backslash two.
    """
    return os.fsencode(path.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")

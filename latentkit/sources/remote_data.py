"""Tables, tars and other data files at a URL outside the hub: finds them and chooses how to read
them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import datasets
from fsspec.utils import glob_translate

from latentkit.contracts import BuildContext, Remark
from latentkit.errors import SourceError
from latentkit.runtime.hub_places import parse_hub_place
from latentkit.runtime.paths import is_url
from latentkit.sources.local_data import outnumber_tars
from latentkit.sources.path_table import PathTable, open_path_table
from latentkit.sources.patterns import expand_braces
from latentkit.sources.splits import remark_other_splits, split_files
from latentkit.sources.tars import is_tar
from latentkit.sources.url_files import UrlFiles
from latentkit.sources.webdataset import TarSource, TarStream
from latentkit.sources.webdataset_opening import open_tars

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

BUILDERS = {
    **{".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tsv": "csv"},
    **{".json": "json", ".jsonl": "json", ".ndjson": "json"},
}
"""Endings of data files, local or at URLs, to the library's builder that reads them."""


@dataclass(frozen=True)
class RemoteData:
    """Files of one kind, relative to one URL, by split."""

    files: UrlFiles
    splits: dict[str, list[str]]
    remarks: Sequence[Remark] = ()

    @property
    def names(self) -> list[str]:
        """Return the names of all files."""
        return [name for names in self.splits.values() for name in names]

    @property
    def digest(self) -> str:
        """Return a hash that changes when any file does."""
        stamps = [(self.files.name(name), self.files.stamp(name)) for name in self.names]
        return hashlib.sha256(repr(stamps).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def open_builder(self) -> datasets.DatasetBuilder:
        """Return the library's builder for the files. Its cache is specific to their stamps,
        because the library considers files of many protocols as never changing.
        """
        ending = os.path.splitext(self.names[0])[1].lower()
        cache = os.path.join(datasets.config.HF_DATASETS_CACHE, "latentkit-urls", self.digest)
        options = {"sep": "\t"} if ending == ".tsv" else {}
        return datasets.load_dataset_builder(
            BUILDERS[ending], data_files=self.urls, cache_dir=cache, **options
        )

    @property
    def urls(self) -> dict[str, list[str]]:
        """Return full URLs of the files, by split."""
        return {
            split: [self.files.name(name) for name in names] for split, names in self.splits.items()
        }


def find_remote(config: DatasetsConfig) -> RemoteData | None:
    """Return the files that a recipe's `path` names at a URL (one file, a folder, a pattern or a
    list); None for any other path.

    Raises:
        SourceError: no file exists, they are of several kinds, or the URL can't be reached.
    """
    texts = [config.path] if isinstance(config.path, str) else list(config.path)
    are_remote = [is_url(text) and parse_hub_place(text, "dataset") is None for text in texts]
    if not any(are_remote):
        return None
    urls = [url for text in texts for url in expand_braces(text.rstrip("/"))]
    if not all(are_remote) or len({url.partition("://")[0] for url in urls}) > 1:
        raise SourceError(
            f"source datasets: {config.path}: expected URLs of one protocol, or only paths"
        )
    is_folder = len(urls) == 1 and not _has_magic(urls[0]) and not _is_data(urls[0])
    base = urls[0] if is_folder else _common_folder(urls)
    files = UrlFiles(base)
    if is_folder:
        return _find_in_folder(files)
    if any(map(_has_magic, urls)):
        patterns = [url.removeprefix(f"{base}/") for url in urls]
        wanted = re.compile("|".join(map(glob_translate, patterns)))
        names = [name for name in sorted(files.list(recursive=True).files) if wanted.match(name)]
    else:
        names = [url.removeprefix(f"{base}/") for url in urls]
        files.describe_files(names)
    kinds = {_kind(name) for name in names}
    if len(kinds) != 1:
        raise SourceError(
            f"source datasets: {config.path}: expected files of one kind, got"
            f" {', '.join(sorted(kinds)) or 'none'}"
        )
    return RemoteData(files, {"train": names})


def open_remote(
    config: DatasetsConfig, context: BuildContext, data: RemoteData
) -> TarSource | TarStream | PathTable | None:
    """Return the source of tars, or of a table whose rows name files; None for what the library
    `datasets` reads.

    Raises:
        SourceError: the files can't be read, or the recipe doesn't fit them.
    """
    if is_tar(data.names[0]):
        counts = {name: len(files) for name, files in data.splits.items()}
        remarks = [*data.remarks, *remark_other_splits(counts, config.split, "tars")]
        return open_tars(config, context, data.files, data.splits, remarks)
    return open_path_table(config, data.files, data.names[0]) if len(data.names) == 1 else None


def _find_in_folder(files: UrlFiles) -> RemoteData:
    """Return the data files of the most common kind below a URL."""
    found = sorted(name for name in files.list(recursive=True).files if _is_data(name))
    if not found:
        endings = ", ".join((*BUILDERS, ".tar"))
        raise SourceError(
            f"source datasets: no file below {files.url} ends in {endings}; for images and other"
            " media set source.use to folder"
        )
    tars = [name for name in found if is_tar(name)]
    others = [name for name in found if not is_tar(name)]
    if tars and not outnumber_tars(others, tars):
        chosen = tars
    else:
        kind = Counter(map(_kind, others)).most_common(1)[0][0]
        chosen = [name for name in others if _kind(name) == kind]
    left = [name for name in found if name not in set(chosen)]
    remarks = [Remark("other files than the data, not read", len(left), left[0])] if left else []
    return RemoteData(files, split_files(chosen), remarks)


def _kind(name: str) -> str:
    """Return which reader a file needs: "tar", a builder of the library, or else its ending."""
    return (
        "tar"
        if is_tar(name)
        else BUILDERS.get(
            os.path.splitext(name)[1].lower(), os.path.splitext(name)[1] or "no ending"
        )
    )


def _is_data(name: str) -> bool:
    return is_tar(name) or os.path.splitext(name)[1].lower() in BUILDERS


def _has_magic(url: str) -> bool:
    return any(sign in url for sign in "*[") or ("?" in url and not url.startswith("http"))


def _common_folder(urls: Sequence[str]) -> str:
    """Return the URL of the folder that contains all files, without any pattern."""
    parts = [url.split("/") for url in urls]
    common: list[str] = []
    for column in zip(*(one[:-1] for one in parts), strict=False):
        if len(set(column)) > 1 or _has_magic(column[0]):
            break
        common.append(column[0])
    return "/".join(common)

"""Source `latent-files`: a folder of .npy, .npz, .pt, .pth or .safetensors with latents, one sample
each, or what the exporter `safetensors` wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentkit.contracts import BuildContext, Entry
from latentkit.errors import SourceError
from latentkit.sources.latent_options import LatentFilesConfig
from latentkit.sources.latent_source import (
    TENSOR_SUFFIXES,
    Latents,
    LatentSource,
)
from latentkit.sources.latent_tensors import read_known, views_of

LISTING = "metadata.jsonl"
NOT_ATTRIBUTES = ("file_name", "key", "view")


@dataclass
class FoundSample:
    """The files of a sample by view, and its attributes where a listing gave them."""

    key: str
    files: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, Any] | None = None


class LatentFiles(LatentSource):
    """A file's relative path without its ending is the key, or metadata.jsonl gives `key`, `view`
    and attributes. Captions lie beside as .txt, attributes as .json.
    """

    def __init__(self, config: LatentFilesConfig, context: BuildContext) -> None:
        self._config = config
        self._folder = self.find_folder(config.path, context)
        self.known = read_known(self._folder)
        files = self.list_files(self._folder, *TENSOR_SUFFIXES)
        if not files:
            raise SourceError(
                f"source latent-files: no {', '.join(TENSOR_SUFFIXES)} below {self._folder}; for"
                " tars or a trainer's own cache name another format (latentkit import --help)"
            )
        listing = self._folder / LISTING
        self._samples = _read_listing(listing, files) if listing.is_file() else _by_path(files)

    def __len__(self) -> int:
        return len(self._samples)

    def entry(self, index: int) -> Entry:
        """Return key, stamps of the files, and attributes."""
        sample = self._samples[index]
        stamps = [self.stamp_of(self._folder / file) for file in sample.files.values()]
        attributes = sample.attributes
        if attributes is None:
            attributes = self._attributes_beside(next(iter(sample.files.values())))
        return Entry(sample.key, " ".join(stamps), attributes)

    def _attributes_beside(self, file: str) -> dict[str, Any]:
        stem, attributes = (self._folder / file).with_suffix(""), dict[str, Any]()
        if self._config.class_folders and "/" in file:
            attributes["label"] = file.partition("/")[0]
        text, more = stem.with_name(f"{stem.name}.txt"), stem.with_name(f"{stem.name}.json")
        if text.is_file():
            attributes["text"] = text.read_text(encoding="utf-8", errors="replace").strip()
        if more.is_file():
            attributes |= _read_mapping(more)
        return attributes

    def read(self, index: int) -> Latents:
        """Read the files of all views."""
        views: dict[str, Any] = {}
        for view, name in self._samples[index].files.items():
            tensors = self.read_tensors(self._folder / name)
            views |= views_of(tensors, self._config, view, len(self.known.axes))
        return Latents(views)


def _by_path(files: list[str]) -> list[FoundSample]:
    return [FoundSample(file.rpartition(".")[0], {"plain": file}) for file in files]


def _read_listing(listing: Path, files: list[str]) -> list[FoundSample]:
    """Return the samples that metadata.jsonl lists; several views of a key are one.

    Raises:
        SourceError: a line is damaged, names a file that is missing, or a view twice.
    """
    samples: dict[str, FoundSample] = {}
    there = set(files)
    with listing.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{listing}, line {number}"
            row = _parse_line(line, where)
            file = row["file_name"]
            if file not in there:
                raise SourceError(f"{where}: no file {file!r}; export or copy the folder again")
            key, view = str(row.get("key", file.rpartition(".")[0])), str(row.get("view", "plain"))
            attributes = {k: value for k, value in row.items() if k not in NOT_ATTRIBUTES}
            sample = samples.setdefault(key, FoundSample(key, {}, attributes))
            if view in sample.files:
                raise SourceError(
                    f"{where}: {key!r} has the view {view} twice, in {sample.files[view]} and"
                    f" {file}; remove one"
                )
            sample.files[view] = file
    return list(samples.values())


def _parse_line(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
        row["file_name"] + ""
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            f"{where}: expected an object with file_name, got {line[:80]!r}"
        ) from error
    found: Mapping[str, Any] = row
    return found


def _read_mapping(file: Path) -> dict[str, Any]:
    """Return the scalars, and lists of them, in a JSON file beside a latent."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SourceError(f"{file}: expected JSON: {error}; repair or remove it") from error
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if not isinstance(value, dict)}

"""Source `latent-tars`: tar files as the library webdataset reads them, with a latent as .npy,
.npz, .pt, .pth or .safetensors, or what the exporter `webdataset` wrote.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latentkit.contracts import BuildContext, Entry, Remark
from latentkit.errors import SourceError
from latentkit.sources.latent_options import LatentTarsConfig
from latentkit.sources.latent_source import (
    TENSOR_SUFFIXES,
    Latents,
    LatentSource,
    parse_tensors,
)
from latentkit.sources.latent_tensors import read_known, views_of

CUT_OFF = "cut off: samples after that are missing"

Place = tuple[int, int]
"""Offset and number of bytes."""


@dataclass
class Row:
    """A run of files of one name in a tar: where its tensors are, and what its texts say."""

    tar: int
    tensors: dict[str, Place] = field(default_factory=dict)
    said: dict[str, Any] = field(default_factory=dict)


class LatentTars(LatentSource):
    """A sample's .json gives attributes, and `key` and `view` where latentkit wrote it; .txt is its
    caption, .cls its label. Else its name in the tar is the key.
    """

    def __init__(self, config: LatentTarsConfig, context: BuildContext) -> None:
        self._config = config
        self._folder = self.find_folder(config.path, context)
        self.known = read_known(self._folder)
        self._tars, self._cut_off = self.list_files(self._folder, ".tar"), list[str]()
        self._samples: dict[str, dict[str, Row]] = {}
        for number in range(len(self._tars)):
            self._list_tar(number)
        if not self._samples:
            raise SourceError(
                f"source latent-tars: no tars with {', '.join(TENSOR_SUFFIXES)} below"
                f" {self._folder}; name the format of what is there (latentkit import --help)"
            )
        self._keys = list(self._samples)
        self._stamps = [self.stamp_of(self._folder / tar) for tar in self._tars]

    def _list_tar(self, number: int) -> None:
        path = self._folder / self._tars[number]
        last, row = "", Row(number)
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.removeprefix("./").rpartition("/")
                    stem, _, ending = name.partition(".")
                    if not member.isfile() or not stem:
                        continue
                    if folder + slash + stem != last:
                        self._keep(last, row)
                        last, row = folder + slash + stem, Row(number)
                    _take(row, tar, member, ending.lower())
        except tarfile.ReadError:
            self._cut_off.append(self._tars[number])
        self._keep(last, row)

    def _keep(self, name: str, row: Row) -> None:
        """Keep a row, if it has tensors, under the key and view that it says.

        Raises:
            SourceError: they are there already.
        """
        if not row.tensors:
            return
        key, view = str(row.said.pop("key", name)), str(row.said.pop("view", "plain"))
        views = self._samples.setdefault(key, {})
        if view in views:
            first, second = (self._tars[one.tar] for one in (views[view], row))
            raise SourceError(
                f"source latent-tars: {key!r} is twice below {self._folder}, in {first} and"
                f" {second}; give the samples names of their own"
            )
        views[view] = row

    def __len__(self) -> int:
        return len(self._keys)

    def entry(self, index: int) -> Entry:
        """Return key, stamp of the tar, and attributes."""
        rows = list(self._samples[self._keys[index]].values())
        stamp = " ".join(f"{self._stamps[row.tar]}-{min(row.tensors.values())[0]}" for row in rows)
        return Entry(self._keys[index], stamp, rows[0].said)

    def read(self, index: int) -> Latents:
        """Read the tensors of all views."""
        views: dict[str, Any] = {}
        for view, row in self._samples[self._keys[index]].items():
            tensors: dict[str, Tensor] = {}
            with (self._folder / self._tars[row.tar]).open("rb") as file:
                for name, (offset, size) in row.tensors.items():
                    file.seek(offset)
                    stem, _, ending = name.rpartition(".")
                    found = parse_tensors(file.read(size), f".{ending}")
                    tensors |= {stem or part: tensor for part, tensor in found.items()}
            views |= views_of(tensors, self._config, view, len(self.known.axes))
        return Latents(views)

    def remarks(self) -> list[Remark]:
        """Return which tars end too early."""
        return [Remark(CUT_OFF, len(self._cut_off), self._cut_off[0])] if self._cut_off else []


def _take(row: Row, tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> None:
    """Add a file to its row."""
    if f".{ending}".endswith(TENSOR_SUFFIXES):
        row.tensors[ending] = (member.offset_data, member.size)
        return
    if ending not in ("json", "txt", "cls"):
        return
    opened = tar.extractfile(member)
    text = "" if opened is None else opened.read().decode(errors="replace")
    if ending == "json":
        found = json.loads(text)
        row.said |= found if isinstance(found, dict) else {}
    else:
        row.said["text" if ending == "txt" else "label"] = text.strip()

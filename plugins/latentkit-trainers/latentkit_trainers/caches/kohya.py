"""Source `kohya`: the cache of sd-scripts, with captions of metadata.json or of files beside."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from latentkit.contracts import BuildContext, Entry, KnownLatents, Remark
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers.caches.options import KohyaCacheConfig
from latentkit_trainers.kohya import FAMILIES

NAME = re.compile(r"(?P<stem>.*)_(?P<width>\d{4,})x(?P<height>\d{4,})_(?P<suffix>[a-z0-9]+)\.npz")
BY_SUFFIX = {family.suffix: name for name, family in FAMILIES.items()}
LISTING, CAPTIONS = "metadata.json", (".txt", ".caption")


class Found(NamedTuple):
    """A file by the parts of its name."""

    path: str
    stem: str
    width: str
    height: str
    suffix: str


class KohyaCache(LatentSource):
    """NAME_WWWWxHHHH_FAMILY.npz with "latents" and maybe "latents_flipped", (C, h, w), raw or
    normalized as the family is. The key is the picture's name in metadata.json, or else NAME.
    """

    def __init__(self, config: KohyaCacheConfig, context: BuildContext) -> None:
        self._folder = self.find_folder(config.path, context)
        matches = map(NAME.fullmatch, self.list_files(self._folder, ".npz"))
        found = [Found(match.string, **match.groupdict()) for match in matches if match]
        counts = Counter(BY_SUFFIX.get(file.suffix, file.suffix) for file in found)
        family = config.family or _only_family(counts, self._folder)
        self._family = FAMILIES[family]
        self._files = [file for file in found if file.suffix == self._family.suffix]
        if not self._files:
            raise SourceError(
                f"source kohya: no NAME_WWWWxHHHH_{self._family.suffix}.npz below {self._folder};"
                f" there are {dict(counts)}"
            )
        self.known = KnownLatents(
            self._family.normalization,
            self._family.is_normalized,
            self._family.downscale,
            "CHW",
        )
        self._pictures = self._read_metadata()
        self._num_others = sum(counts.values()) - len(self._files)

    def _read_metadata(self) -> dict[str, tuple[str, Any]]:
        """Return the picture's name and its caption by the names of the .npz without size; none
        where there is no metadata.json.

        Raises:
            SourceError: it is damaged.
        """
        listing = self._folder / LISTING
        if not listing.is_file():
            return {}
        try:
            said = json.loads(listing.read_text(encoding="utf-8"))
            return {
                str(Path(name).with_suffix("").as_posix()): (name, entry.get("caption"))
                for name, entry in said.items()
            }
        except (ValueError, AttributeError) as error:
            raise SourceError(
                f"{listing}: expected a mapping of names to caption and image_size: {error}"
            ) from error

    def __len__(self) -> int:
        return len(self._files)

    def entry(self, index: int) -> Entry:
        """Return key, stamp of the file, and the caption."""
        file = self._files[index]
        key, caption = self._pictures.get(file.stem, (file.stem, None))
        if caption is None:
            caption = self._caption_beside(file.stem)
        stamp = self.stamp_of(self._folder / file.path)
        return Entry(key, stamp, {} if caption is None else {"text": caption})

    def _caption_beside(self, stem: str) -> str | None:
        for ending in CAPTIONS:
            file = self._folder / f"{stem}{ending}"
            if file.is_file():
                return file.read_text(encoding="utf-8", errors="replace").strip()
        return None

    def read(self, index: int) -> Latents:
        """Read the views there are, and the picture's size."""
        file = self._files[index]
        tensors = self.read_tensors(self._folder / file.path)
        size = [int(side) // self._family.downscale for side in (file.height, file.width)]
        end = f"_{size[0]}x{size[1]}" if self._family.names_size else ""
        views = {"plain": {"latent": _pick(tensors, "latents", end)}}
        if f"latents_flipped{end}" in tensors:
            views["hflip"] = {"latent": tensors[f"latents_flipped{end}"]}
        width, height = _pick(tensors, "original_size", end).tolist()
        return Latents(views, {"height": int(height), "width": int(width)})

    def remarks(self) -> list[Remark]:
        """Return what belongs to other families."""
        if not self._num_others:
            return []
        return [Remark("latents of other families, left out", self._num_others)]


def _pick(tensors: dict[str, Tensor], name: str, end: str) -> Tensor:
    if name + end not in tensors:
        raise ValueError(f"no array {name + end!r} among {sorted(tensors)}")
    return tensors[name + end]


def _only_family(counts: Counter[str], folder: Path) -> str:
    """Return the family of all files.

    Raises:
        SourceError: there is none that is known, or there are several.
    """
    known = [name for name in counts if name in FAMILIES]
    if len(known) == 1:
        return known[0]
    raise SourceError(
        f"source kohya: no NAME_WWWWxHHHH_FAMILY.npz of a known family below {folder}; known:"
        f" {', '.join(BY_SUFFIX)}"
        if not known
        else f"source kohya: {folder} has latents of {', '.join(known)}; import each into a dataset"
        f" of its own, with --set source.with.family={known[0]}"
    )


build = KohyaCache

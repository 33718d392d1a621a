"""Source `repa`: the data of REPA and SiT + REPA, which is lossless."""

from __future__ import annotations

import json
from typing import Any

from latentkit.contracts import BuildContext, Entry, KnownLatents
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers import scales
from latentkit_trainers.caches.options import CacheConfig

FOLDER, LISTING = "vae-sd", "dataset.json"


class RepaCache(LatentSource):
    """vae-sd/NAME.npy, mean and then standard deviation, raw, (2C, h, w), with labels in
    vae-sd/dataset.json. The path to the folder `vae-sd` itself will do.
    """

    known = KnownLatents(scales.SD, False, 8, "CHW")

    def __init__(self, config: CacheConfig, context: BuildContext) -> None:
        folder = self.find_folder(config.path, context)
        self._folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        self._files = self.list_files(self._folder, ".npy")
        if not self._files:
            raise SourceError(
                f"source repa: no .npy below {self._folder}; expected a folder {FOLDER} with"
                " img-mean-std-00000000.npy and so on"
            )
        self._labels = self._read_labels()

    def _read_labels(self) -> dict[str, Any]:
        """Return the label of each file; none where there is no listing, or it has none.

        Raises:
            SourceError: the listing is damaged.
        """
        listing = self._folder / LISTING
        if not listing.is_file():
            return {}
        try:
            labels = json.loads(listing.read_text(encoding="utf-8"))["labels"]
            return {str(name): int(label) for name, label in labels or ()}
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f'{listing}: expected {{"labels": [[name, number], ...]}}: {error}'
            ) from error

    def __len__(self) -> int:
        return len(self._files)

    def entry(self, index: int) -> Entry:
        """Return key, stamp of the file, and the label."""
        file = self._files[index]
        attributes = {"label": self._labels.get(file)} if self._labels else {}
        stamp = self.stamp_of(self._folder / file)
        return Entry(file.removesuffix(".npy"), stamp, attributes)

    def read(self, index: int) -> Latents:
        """Read the moments."""
        tensor = self.read_tensors(self._folder / self._files[index])[""]
        return Latents({"plain": self.split_moments(tensor, "std")})


build = RepaCache

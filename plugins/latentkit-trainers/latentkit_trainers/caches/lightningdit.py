"""Source `lightningdit`: the cache of LightningDiT."""

from __future__ import annotations

import bisect
import functools
import itertools
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from latentkit.contracts import BuildContext, Entry, KnownLatents
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers.caches.options import CacheConfig


class LightningDitCache(LatentSource):
    """Shards *.safetensors in one folder with "latents" and "latents_flip", raw, (N, C, h, w), and
    "labels", (N,) int64. A row's key is its shard's name and its number.
    """

    known = KnownLatents(None, False, axes="CHW")

    def __init__(self, config: CacheConfig, context: BuildContext) -> None:
        self._folder = self.find_folder(config.path, context)
        self._shards = self.list_files(self._folder, ".safetensors")
        if not self._shards:
            raise SourceError(f"source lightningdit: no .safetensors in {self._folder}")
        self._labels = [_read_labels(self._folder / shard) for shard in self._shards]
        self._starts = [0, *itertools.accumulate(map(len, self._labels))]
        self._stamps = [self.stamp_of(self._folder / shard) for shard in self._shards]

    def __len__(self) -> int:
        return self._starts[-1]

    def _place(self, index: int) -> tuple[int, int]:
        """Return the shard, and the row in it."""
        shard = bisect.bisect_right(self._starts, index) - 1
        return shard, index - self._starts[shard]

    def entry(self, index: int) -> Entry:
        """Return key, stamp of the shard and number of the row, and the label."""
        shard, row = self._place(index)
        key = f"{self._shards[shard].removesuffix('.safetensors')}/{row:08d}"
        return Entry(key, f"{self._stamps[shard]}-{row}", {"label": self._labels[shard][row]})

    def read(self, index: int) -> Latents:
        """Read one row of the shard."""
        shard, row = self._place(index)
        opened = _open(self._folder / self._shards[shard], self._stamps[shard])
        names = {"plain": "latents"}
        if "latents_flip" in opened.keys():  # noqa: SIM118  # no mapping
            names["hflip"] = "latents_flip"
        return Latents(
            {view: {"latent": opened.get_slice(name)[row]} for view, name in names.items()}
        )


@functools.lru_cache(maxsize=64)
def _open(shard: Path, stamp: str) -> Any:
    """Return an open shard; the stamp tells it from what lay there before."""
    return safe_open(shard, "pt")


def _read_labels(shard: Path) -> list[int]:
    """Return the labels of a shard.

    Raises:
        SourceError: it is damaged, or no shard of the trainer.
    """
    try:
        with safe_open(shard, "pt") as opened:
            labels: list[int] = opened.get_tensor("labels").tolist()
            num_rows = opened.get_slice("latents").get_shape()[0]
    except SafetensorError as error:
        raise SourceError(
            f"{shard}: expected a shard with latents and labels: {error}; remove or restore it"
        ) from error
    if num_rows != len(labels):
        raise SourceError(f"{shard}: {num_rows} latents, but {len(labels)} labels")
    return labels


build = LightningDitCache

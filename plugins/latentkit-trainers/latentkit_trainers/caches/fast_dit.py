"""Source `fast-dit`: the features of fast-DiT."""

from __future__ import annotations

from pathlib import Path

from latentkit.contracts import BuildContext, Entry, KnownLatents
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers import scales
from latentkit_trainers.caches.options import CacheConfig

FEATURES, LABELS = "imagenet256_features", "imagenet256_labels"


class FastDitCache(LatentSource):
    """imagenet256_features/N.npy, normalized, (1, C, h, w), and the label under the same name in
    imagenet256_labels, (1,) int64. Flips are frozen in the features.
    """

    known = KnownLatents(scales.SD, True, 8, "CHW")

    def __init__(self, config: CacheConfig, context: BuildContext) -> None:
        self._folder = self.find_folder(config.path, context)
        features, labels = (
            self.list_files(self._folder / name, ".npy") for name in (FEATURES, LABELS)
        )
        if not features:
            raise SourceError(f"source fast-dit: no .npy in {self._folder / FEATURES}")
        if features != labels:
            odd = sorted(set(features) ^ set(labels))[0]
            raise SourceError(
                f"source fast-dit: {odd} is only in one of {FEATURES} and {LABELS}, which have"
                f" {len(features)} and {len(labels)} files; the trainer pairs them by their order"
            )
        self._files = features

    def __len__(self) -> int:
        return len(self._files)

    def entry(self, index: int) -> Entry:
        """Return key, stamps of both files, and the label."""
        file = self._files[index]
        paths = self._folder / FEATURES / file, self._folder / LABELS / file
        stamp = " ".join(map(self.stamp_of, paths))
        return Entry(file.removesuffix(".npy"), stamp, {"label": self._label(paths[1])})

    def _label(self, file: Path) -> int:
        try:
            return int(self.read_tensors(file)[""].flatten()[0])
        except (ValueError, EOFError, IndexError) as error:
            raise SourceError(f"{file}: expected a label, (1,) int64: {error}") from error

    def read(self, index: int) -> Latents:
        """Read the features."""
        tensor = self.read_tensors(self._folder / FEATURES / self._files[index])[""]
        return Latents({"plain": {"latent": tensor[0] if tensor.ndim == 4 else tensor}})


build = FastDitCache

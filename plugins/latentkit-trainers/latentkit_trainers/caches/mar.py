"""Source `mar`: the cache of MAR and its derivatives, which is lossless."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Entry, KnownLatents
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers import scales
from latentkit_trainers.caches.options import CacheConfig


class MarCache(LatentSource):
    """CLASS/NAME.npz with "moments" and "moments_flip": mean, then log-variance, raw.

    The class is the attribute `label`. The key is NAME, or CLASS/NAME where two classes have a
    NAME in common.
    """

    known = KnownLatents(scales.MAR, False, axes="CHW")

    def __init__(self, config: CacheConfig, context: BuildContext) -> None:
        self._folder = self.find_folder(config.path, context)
        found = self.list_files(self._folder, ".npz")
        self._files = [file for file in found if "/" in file]
        if not self._files:
            raise SourceError(
                f"source mar: no CLASS/NAME.npz below {self._folder}"
                + (f", only {found[0]} beside" if found else "")
                + "; name the format of what is there"
            )
        names = {file.partition("/")[2].casefold() for file in self._files}
        self._is_unique = len(names) == len(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def entry(self, index: int) -> Entry:
        """Return key, stamp of the file, and the class."""
        file = self._files[index]
        label, _, name = file.partition("/")
        key = (name if self._is_unique else file).removesuffix(".npz")
        return Entry(key, self.stamp_of(self._folder / file), {"label": label})

    def read(self, index: int) -> Latents:
        """Read the moments of both views."""
        tensors = self.read_tensors(self._folder / self._files[index])
        views = {"plain": "moments", "hflip": "moments_flip"}
        return Latents(
            {view: self.split_moments(tensors[name], "logvar") for view, name in views.items()}
        )


build = MarCache

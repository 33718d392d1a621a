"""Whole units of datasets at URLs, in a local folder of bounded size that processes and datasets
may share.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from latentkit.errors import StoreError

Cache = int | str | os.PathLike[str] | tuple[str | os.PathLike[str], int] | None
"""What `latentkit.open(cache=...)` takes; see `open_cache`."""

DEFAULT_LIMIT_BYTES = 64 << 30
PART_DEAD_AFTER_SECONDS = 3600.0
"""A download that nothing was added to for so long is a dead process's."""

OWN = re.compile(r"[0-9a-f]{64}\.(unit|[0-9a-f]{8}\.part)")
"""Names of the cache's files: whatever else lies in its folder is never touched."""


@dataclass(frozen=True)
class UnitCache:
    """Downloaded files, of which those used last are kept, `limit_bytes` of them."""

    folder: Path
    limit_bytes: int

    def fetch(self, digest: str, size: int, download: Callable[[Path], None]) -> Path:
        """Return the file of a content, downloaded by one process if it isn't there.

        Args:
            digest: 64 hexadecimal digits that stand for this content and no other.
            download: writes the content to a path.

        Raises:
            StoreError: the cache can't be written, and whatever `download` raises.
        """
        path = self.folder / f"{digest}.unit"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    self._make_room(size)
                    self._download(path, download)
                with suppress(FileNotFoundError):  # another process made room just now
                    os.utime(path)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: units can't be kept there: {error.strerror or error}; give `cache`"
                " another folder"
            ) from error
        return path

    def _download(self, path: Path, download: Callable[[Path], None]) -> None:
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            download(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until `size` bytes fit.

        A unit that somebody has mapped stays readable when its name is gone, as POSIX promises; its
        space is free when the map is.
        """
        files = sorted(self._files(), key=lambda file: file[1].st_mtime)
        excess = sum(stat.st_size for _, stat in files) + size - self.limit_bytes
        for path, stat in files:
            if excess <= 0:
                return
            if path.suffix == ".part" and time.time() - stat.st_mtime < PART_DEAD_AFTER_SECONDS:
                continue
            with suppress(PermissionError):  # Windows keeps a file that somebody has mapped
                path.unlink(missing_ok=True)
                Path(f"{path}.lock").unlink(missing_ok=True)
                excess -= stat.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for entry in os.scandir(self.folder):
            if OWN.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another process made room
                    yield Path(entry.path), entry.stat()


def open_cache(cache: Cache) -> UnitCache:
    """The cache that `cache` describes: its limit in bytes, its folder, or (folder, bytes).

    None is the user's own cache folder (below XDG_CACHE_HOME, or ~/.cache) and 64 GiB, and so is
    what isn't given.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    folder, limit = (
        cache
        if isinstance(cache, tuple)
        else (None, cache) if isinstance(cache, int) else (cache, None)
    )
    if (
        isinstance(limit, bool)
        or not isinstance(limit, int | None)
        or not isinstance(folder, str | os.PathLike | None)
    ):
        raise TypeError(
            f"cache must be a number of bytes, a folder, or (folder, bytes), got {cache!r}"
        )
    if limit is not None and limit < 0:
        raise ValueError(f"cache must be 0 bytes or more, got {limit}")
    path = _own_folder() if folder is None else Path(folder).expanduser().absolute()
    return UnitCache(path, DEFAULT_LIMIT_BYTES if limit is None else limit)


def _own_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentkit" / "units"

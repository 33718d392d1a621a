"""A local cache of whole units from datasets at URLs, with limited size. Processes and datasets may
share it.
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
"""Values that `latentkit.open(cache=...)` accepts; see `open_cache`."""

DEFAULT_LIMIT_BYTES = 64 << 30
PART_DEAD_AFTER_SECONDS = 3600.0
"""A download to which nothing was added for this long belongs to a dead process."""

CACHE_FILE_NAME = re.compile(r"[0-9a-f]{64}\.(unit|[0-9a-f]{8}\.part)")
"""Names of the cache's files. Other files in its folder are never touched."""


@dataclass(frozen=True)
class UnitCache:
    """A folder of downloaded files. The most recently used ones are kept, up to `limit_bytes`; a
    larger file is kept alone.
    """

    folder: Path
    limit_bytes: int

    def fetch(self, digest: str, size: int, download: Callable[[Path], None]) -> Path:
        """Return the file with a content, downloaded if it is missing. If several processes need
        it, one downloads it.

        Args:
            digest: 64 hexadecimal digits that identify the content.
            size: size in bytes.
            download: writes the content to a path.

        Raises:
            StoreError: the cache can't be written; also what `download` raises.
        """
        path = self.folder / f"{digest}.unit"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    self._free_space(size)
                    self._download(path, download)
                with suppress(FileNotFoundError):  # another process just removed it
                    os.utime(path)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: units can't be stored there: {error.strerror or error}. Give"
                " `cache` another folder"
            ) from error
        return path

    def _download(self, path: Path, download: Callable[[Path], None]) -> None:
        """Download a file under another name, then rename it."""
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            download(part)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _free_space(self, size: int) -> None:
        """Remove the least recently used files until `size` bytes fit.

        A unit that some process has mapped stays readable after its name is removed, as POSIX
        guarantees. Its disk space is freed when it is unmapped.
        """
        files = sorted(self._files(), key=lambda file: file[1].st_mtime)
        excess = sum(stat.st_size for _, stat in files) + size - self.limit_bytes
        for path, stat in files:
            if excess <= 0:
                return
            if path.suffix == ".part" and time.time() - stat.st_mtime < PART_DEAD_AFTER_SECONDS:
                continue
            with suppress(PermissionError):  # Windows keeps a file that a process has mapped
                path.unlink(missing_ok=True)
                Path(f"{path}.lock").unlink(missing_ok=True)
                excess -= stat.st_size

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the cache's files with their state."""
        for entry in os.scandir(self.folder):
            if CACHE_FILE_NAME.fullmatch(entry.name):
                with suppress(FileNotFoundError):  # another process removed it
                    yield Path(entry.path), entry.stat()


def open_cache(cache: Cache) -> UnitCache:
    """Return the cache that `cache` describes: its limit in bytes, its folder, or (folder, bytes).

    None, and any part that isn't given, means the user's cache folder (below XDG_CACHE_HOME, or
    ~/.cache) and 64 GiB.

    Raises:
        TypeError, ValueError: `cache` is something else.
    """
    folder, limit = (
        cache
        if isinstance(cache, tuple)
        else (None, cache)
        if isinstance(cache, int)
        else (cache, None)
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
    """Return the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latentkit" / "units"

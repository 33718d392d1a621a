"""A latent dataset's folder on a file system of this machine."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

from latentkit.errors import StoreError
from latentkit.store.commit import give_final_name, retry_while_in_use, sync
from latentkit.store.folder import ASIDE, Folder, part_name

MAX_OPEN_TRIES = 10

NO_SEEKING = " (mount it so that files can be written anywhere: rclone --vfs-cache-mode writes)"


class LocalFolder(Folder):
    """A folder on a file system of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()

    def top_names(self) -> set[str]:
        return set(self._names(self.path))

    def list(self, folder: str) -> list[str]:
        return sorted(name for name in self._names(self.path / folder) if not name.startswith("."))

    def _names(self, path: Path) -> Iterator[str]:
        try:
            yield from (entry.name for entry in os.scandir(path))
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{path}: {error.strerror}") from error

    def size(self, name: str) -> int:
        with self._reading(name):
            return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        with self._reading(name):
            return retry_while_in_use((self.path / name).read_bytes)

    def open_file(self, name: str) -> BinaryIO:
        with self._reading(name):
            return retry_while_in_use(open, self.path / name, "rb")

    def local_copy(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Turn an error while reading `name` into a `StoreError`."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.path / name}: {error.strerror}") from error

    def discard_if_empty(self) -> None:
        with suppress(OSError):
            (self.path / ASIDE).rmdir()
            self.path.rmdir()

    def stop_waiting(self) -> None:
        """Do nothing: a local folder is never waited for."""

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with self._part(name) as file:
            yield file
            _close_on_disk(file)
            try:
                give_final_name(Path(file.name), self.path / name)
            except FileExistsError:
                return
            sync((self.path / name).parent)

    def replace(self, name: str, content: bytes) -> None:
        with self._part(name) as file:
            file.write(content)
            _close_on_disk(file)
            retry_while_in_use(os.replace, file.name, self.path / name)
            sync((self.path / name).parent)

    def remove(self, name: str) -> None:
        with self._as_store_error(name):
            retry_while_in_use((self.path / name).unlink, missing_ok=True)

    def claim(self, name: str, content: str) -> bool:
        with self._as_store_error(name):
            try:
                with _open_in_new_folder(self.path / name, "xb") as file:
                    file.write(content.encode())
            except FileExistsError:
                return False
            return True

    def remove_dead_claim(self, name: str) -> None:
        # Of several finders one renames; one that comes late may rename the new owner's, and then
        # both work.
        stale = (self.path / name).with_suffix(f".{os.getpid()}.stale")
        with self._as_store_error(name), suppress(FileNotFoundError):
            retry_while_in_use(os.replace, self.path / name, stale)
            retry_while_in_use(stale.unlink)

    def touch(self, name: str) -> None:
        with suppress(OSError):
            os.utime(self.path / name)

    def age_seconds(self, name: str) -> float:
        try:
            return time.time() - (self.path / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @contextmanager
    def _part(self, name: str) -> Iterator[BinaryIO]:
        """Open an unfinished file, which is removed on leaving."""
        part = self.path / part_name(name)
        try:
            with self._as_store_error(name), _open_in_new_folder(part, "w+b") as file:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                yield file
        finally:
            with suppress(OSError):
                part.unlink()

    @contextmanager
    def _as_store_error(self, name: str) -> Iterator[None]:
        """Turn an error while writing `name` into a `StoreError`."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror}{NO_SEEKING if error.errno == errno.ESPIPE else ''}"
            problem = f"{self.path / name} can't be written: {reason}"
            raise StoreError(f"{problem}; nothing that was there before is lost") from error


def _open_in_new_folder(path: Path, mode: Literal["xb", "w+b"]) -> BinaryIO:
    """Open a file for writing. Its folder is created, again if other processes just removed it as
    empty.
    """
    for tries_left in reversed(range(MAX_OPEN_TRIES)):
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return retry_while_in_use(open, path, mode)
        except FileNotFoundError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def _close_on_disk(file: BinaryIO) -> None:
    """Flush a file to disk and close it, because Windows doesn't rename open files."""
    file.flush()
    os.fsync(file.fileno())
    file.close()

"""The few file operations that the promises of a latent dataset rest on: `Folder`, and `LocalFolder` for a path.

One file is committed by writing it aside, fsync, and a step that fails when the name exists
(`commit.publish`): the first commit wins. Only dataset.json is ever replaced. `UrlFolder` keeps the
same promises on object stores.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import secrets
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from latentkit.errors import StoreError
from latentkit.overrides import is_url
from latentkit.store.commit import patiently, publish, sync
from latentkit.store.unit_cache import Cache, open_cache

ASIDE = "claims"
"""Files in the making lie here, so that a killed process leaves nothing among the units."""

MAX_OPEN_TRIES = 10

NO_SEEKING = " (mount it so that files can be written anywhere: rclone --vfs-cache-mode writes)"

T = TypeVar("T")
R = TypeVar("R")


class Folder(ABC):
    """A latent dataset's folder, by names relative to it such as "units/000-000000.safetensors"; `str` gives its path or URL.

    Every method raises `StoreError` when the folder can't be reached or written.
    """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    @abstractmethod
    def top_names(self) -> set[str]:
        """Names of the files and folders at the top; empty when the folder itself isn't there."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Names of the files of one sub-folder, sorted; empty when there is none."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            StoreError: it isn't there.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A small file's bytes.

        Raises:
            StoreError: it can't be read.
        """

    @abstractmethod
    def open_file(self, name: str) -> BinaryIO:
        """A file to read from and seek in; the caller closes it.

        Raises:
            StoreError: it can't be read.
        """

    @abstractmethod
    def local_copy(self, name: str) -> Path:
        """A file of this machine with the content of a committed file, to be memory-mapped.

        Raises:
            StoreError: it can't be read.
        """

    @abstractmethod
    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write; committed under `name` on leaving, unless somebody else's is there already, or an exception passes.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Put `content` in the place of whatever has that name, in one step.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; nothing happens when it isn't there."""

    @abstractmethod
    def append(self, name: str, line: str) -> None:
        """Add a line to a log that no other process writes."""

    @abstractmethod
    def discard_if_empty(self) -> None:
        """Remove the folder when nothing has been written to it."""

    @abstractmethod
    def stop_waiting(self) -> None:
        """Wait no longer when the folder can't be reached: the work is ending."""

    def ask_each(self, ask: Callable[[T], R], items: Iterable[T]) -> Sequence[R]:
        """What `ask` gives for each item, in their order; where requests take time, many at once.

        Raises what `ask` raises for the first item for which it does.
        """
        return [ask(item) for item in items]

    # ------------------------------------------------------------ claims: small files that say who is at work

    @abstractmethod
    def claim(self, name: str, content: str) -> bool:
        """Whether the file was not there and now is, with `content`."""

    @abstractmethod
    def take_over(self, name: str) -> None:
        """Put a dead process's claim out of the way; of several that try, one succeeds or the file is gone."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Make a claim young again."""

    @abstractmethod
    def age_seconds(self, name: str) -> float:
        """Seconds since a claim was written or touched; 0 when it is gone."""


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
            return patiently((self.path / name).read_bytes)

    def open_file(self, name: str) -> BinaryIO:
        with self._reading(name):
            return patiently(open, self.path / name, "rb")

    def local_copy(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.path / name}: {error.strerror}") from error

    def discard_if_empty(self) -> None:
        with suppress(OSError):
            (self.path / ASIDE).rmdir()
            self.path.rmdir()

    def stop_waiting(self) -> None:
        """Nothing: a local folder is never waited for."""

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        with self._part(name) as file:
            yield file
            _close_on_disk(file)
            try:
                publish(Path(file.name), self.path / name)
            except FileExistsError:
                return
            sync((self.path / name).parent)

    def replace(self, name: str, content: bytes) -> None:
        with self._part(name) as file:
            file.write(content)
            _close_on_disk(file)
            patiently(os.replace, file.name, self.path / name)
            sync((self.path / name).parent)

    def remove(self, name: str) -> None:
        with self._explained(name):
            patiently((self.path / name).unlink, missing_ok=True)

    def append(self, name: str, line: str) -> None:
        with self._explained(name):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            with open(self.path / name, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def claim(self, name: str, content: str) -> bool:
        with self._explained(name):
            try:
                with _open_in_new_folder(self.path / name, "xb") as file:
                    file.write(content.encode())
            except FileExistsError:
                return False
            return True

    def take_over(self, name: str) -> None:
        # Of several finders one renames; one that comes late may rename the new owner's, and then both work.
        stale = (self.path / name).with_suffix(f".{os.getpid()}.stale")
        with self._explained(name), suppress(FileNotFoundError):
            patiently(os.replace, self.path / name, stale)
            patiently(stale.unlink)

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
        """A file in the making, which is gone on leaving."""
        part = self.path / part_name(name)
        try:
            with self._explained(name), _open_in_new_folder(part, "w+b") as file:
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                yield file
        finally:
            with suppress(OSError):
                part.unlink()

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turns what goes wrong while writing `name` into a `StoreError`."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror}{NO_SEEKING if error.errno == errno.ESPIPE else ''}"
            problem = f"{self.path / name} can't be written: {reason}"
            raise StoreError(f"{problem}; nothing that was there before is lost") from error


def _open_in_new_folder(path: Path, mode: Literal["xb", "w+b"]) -> BinaryIO:
    """A file to write; its folder is made, and made again where other processes just then discard it as empty."""
    for tries_left in reversed(range(MAX_OPEN_TRIES)):
        with suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return patiently(open, path, mode)
        except FileNotFoundError:
            if not tries_left:
                raise
    raise AssertionError("the last try returns or raises")


def part_name(name: str) -> str:
    """Where this process writes a file aside; the name tells whose it is, so that a dead process's can be swept."""
    return f"{ASIDE}/{name.replace('/', '-')}~{host()}~{os.getpid()}~{secrets.token_hex(4)}.part"


@functools.cache
def host() -> str:
    """Where a process number means something: the host, and the PID namespace where there are several (containers share host names)."""
    try:
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        namespace = ""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())  # for file names
    return "-".join(filter(None, [name, namespace]))


def _close_on_disk(file: BinaryIO) -> None:
    """Close a file whose content is then on disk; Windows renames none that is open."""
    file.flush()
    os.fsync(file.fileno())
    file.close()


def open_folder(output: str, cache: Cache = None) -> Folder:
    """The folder of an `output.path`: a path, or a URL of any protocol that fsspec has a driver for.

    Args:
        output: a path, file:// URL or other URL such as s3://bucket/latents.
        cache: where units read from a URL are kept, and how many bytes of them: see `open_cache`.

    Raises:
        StoreError: something that isn't a folder, or a URL whose driver is missing or can't be set up.
        TypeError, ValueError: a cache that is none.
    """
    protocol, _, rest = output.partition("://") if is_url(output) else ("", "", output)
    if protocol and not rest.strip("/"):
        raise StoreError(f"{output} names no place; expected something like {protocol}://bucket/latents")
    if protocol and protocol not in ("file", "local"):
        from latentkit.store.url_folder import UrlFolder

        return UrlFolder(output, open_cache(cache))
    if re.match("/[A-Za-z]:", rest) and sys.platform == "win32":
        rest = rest[1:]  # file:///C:/latents
    path = Path(rest).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; the output needs a folder of its own")
    return LocalFolder(path)


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

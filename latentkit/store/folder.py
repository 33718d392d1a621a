"""The few file operations that the promises of a latent dataset rest on, for a local folder.

One file is committed by writing it aside, fsync, and a hard link, which fails when the name exists: the first commit wins. Only
dataset.json is ever replaced.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from latentkit.errors import StoreError

ASIDE = "claims"
"""Files in the making lie here, so that a killed process leaves nothing among the units."""


class Folder:
    """A latent dataset's folder, by names relative to it such as "units/000-000000.safetensors"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).exists()

    def list(self, folder: str) -> list[str]:
        """Names of the files of one sub-folder, sorted; empty when there is none."""
        try:
            return sorted(entry.name for entry in os.scandir(self.path / folder) if not entry.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self.path / folder}: {error.strerror}") from error

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            StoreError: it isn't there.
        """
        try:
            return (self.path / name).stat().st_size
        except OSError as error:
            raise StoreError(f"{self.path / name}: {error.strerror}") from error

    def read(self, name: str) -> bytes:
        """A small file's bytes.

        Raises:
            StoreError: it can't be read.
        """
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{self.path / name}: {error.strerror}") from error

    def discard_if_empty(self) -> None:
        """Remove the folder when nothing has been written to it."""
        with suppress(OSError):
            (self.path / ASIDE).rmdir()
            self.path.rmdir()

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; committed under `name` on leaving, unless somebody else's is there already, or an exception passes.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        with self._part(name) as file:
            yield file
            _flush(file)
            try:
                os.link(file.name, self.path / name)
            except FileExistsError:
                return
            sync((self.path / name).parent)

    def replace(self, name: str, content: bytes) -> None:
        """Put `content` in the place of whatever has that name, in one step.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        with self._part(name) as file:
            file.write(content)
            _flush(file)
            os.replace(file.name, self.path / name)
            sync((self.path / name).parent)

    @contextmanager
    def _part(self, name: str) -> Iterator[BinaryIO]:
        """A file in the making, which is gone on leaving; its name tells whose it is, so that a dead process's can be swept."""
        owner = f"{host()}~{os.getpid()}~{secrets.token_hex(4)}"
        part = self.path / ASIDE / f"{name.replace('/', '-')}~{owner}.part"
        try:
            with self.explained(name):
                part.parent.mkdir(parents=True, exist_ok=True)
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                with open(part, "w+b") as file:
                    yield file
        finally:
            with suppress(OSError):
                part.unlink()

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        """Turns what goes wrong while writing `name` into a `StoreError`."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.path / name} can't be written: {error.strerror}; nothing that was there before is lost") from error


@functools.cache
def host() -> str:
    """Where a process number means something: the host, and the PID namespace where there are several (containers share host names)."""
    try:
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        namespace = ""
    return "-".join(filter(None, [socket.gethostname(), namespace]))


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_folder(output: str) -> Folder:
    """The folder of an `output.path`.

    Raises:
        StoreError: a URL, or the path of something that isn't a folder.
    """
    if "://" in output:
        raise StoreError(f"{output}: this version writes and reads local folders; give a path")
    path = Path(output).expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file; the output needs a folder of its own")
    return Folder(path)


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

"""`Folder`: the few file operations that the guarantees of a latent dataset are based on.

A file is committed by writing it under another name, fsync, and a step that fails if the name
exists (`commit.give_final_name`): the first commit wins. Only dataset.json is ever replaced.
`LocalFolder` works on file systems, `UrlFolder` gives the same guarantees on object stores.
"""

from __future__ import annotations

import functools
import json
import os
import re
import secrets
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, TypeVar

ASIDE = "claims"
"""Unfinished files are here, so a killed process leaves nothing among the units."""

T = TypeVar("T")
R = TypeVar("R")


class Folder(ABC):
    """A latent dataset's folder. Files are named relative to it, such as
    "units/000-000000.safetensors"; `str` returns its path or URL.

    Every method raises `StoreError` if the folder can't be reached or written.
    """

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Return whether the file exists."""

    @abstractmethod
    def top_names(self) -> set[str]:
        """Return the names of the files and folders at the top; empty if the folder doesn't
        exist.
        """

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Return the sorted names of the files in a sub-folder; empty if it doesn't exist."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes.

        Raises:
            StoreError: the file doesn't exist.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a small file's bytes.

        Raises:
            StoreError: the file can't be read.
        """

    @abstractmethod
    def open_file(self, name: str) -> BinaryIO:
        """Open a file for reading and seeking. The caller closes it.

        Raises:
            StoreError: the file can't be read.
        """

    @abstractmethod
    def local_copy(self, name: str) -> Path:
        """Return a file on this machine with the content of a committed file, to map into memory.

        Raises:
            StoreError: the file can't be read.
        """

    @abstractmethod
    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a file for writing. It is committed as `name` on leaving, unless that exists already
        or an exception is raised.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """

    @abstractmethod
    def replace(self, name: str, content: bytes) -> None:
        """Replace whatever has that name by `content`, in one step.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    @abstractmethod
    def discard_if_empty(self) -> None:
        """Remove the folder if nothing has been written to it."""

    @abstractmethod
    def stop_waiting(self) -> None:
        """Don't wait any more for a folder that can't be reached, because the work is ending."""

    def ask_each(self, ask: Callable[[T], R], items: Iterable[T]) -> Sequence[R]:
        """Return what `ask` returns for each item, in order. If requests take time, many run at
        once.

        Raises what `ask` raises for the first item that fails.
        """
        return [ask(item) for item in items]

    # ------------------------------------------------------------ claims: small files that say who
    # is working

    @abstractmethod
    def claim(self, name: str, content: str) -> bool:
        """Create the file with `content`; True if it didn't exist before."""

    @abstractmethod
    def remove_dead_claim(self, name: str) -> None:
        """Remove a dead process's claim. If several processes try, one succeeds."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Update the time of a claim."""

    @abstractmethod
    def age_seconds(self, name: str) -> float:
        """Return the seconds since a claim was written or touched; 0 if it is gone."""


def part_name(name: str) -> str:
    """Return the name under which this process writes an unfinished file. It identifies the
    process, so that a dead process's files can be removed.
    """
    return f"{ASIDE}/{name.replace('/', '-')}~{host()}~{os.getpid()}~{secrets.token_hex(4)}.part"


@functools.cache
def host() -> str:
    """Return what a process number is unique in: the host, and the PID namespace if there are
    several (containers share host names).
    """
    try:
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        namespace = ""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())  # for file names
    return "-".join(filter(None, [name, namespace]))


def canonical_json(value: object) -> str:
    """Return one text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )

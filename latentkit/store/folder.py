"""The few file operations that the promises of a latent dataset rest on: `Folder`, and
`LocalFolder` for a path.

One file is committed by writing it aside, fsync, and a step that fails when the name exists
(`commit.publish`): the first commit wins. Only dataset.json is ever replaced. `UrlFolder` keeps the
same promises on object stores.
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
"""Files in the making lie here, so that a killed process leaves nothing among the units."""

T = TypeVar("T")
R = TypeVar("R")


class Folder(ABC):
    """A latent dataset's folder, by relative names; `str` gives its path or URL.

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
        """A file to write; committed under `name` on leaving, unless somebody else's is there
        already, or an exception passes.

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

    # ------------------------------------------------------------ claims: small files that say who
    # is working

    @abstractmethod
    def claim(self, name: str, content: str) -> bool:
        """Whether the file was not there and now is, with `content`."""

    @abstractmethod
    def take_over(self, name: str) -> None:
        """Put a dead process's claim out of the way; of several that try, one succeeds."""

    @abstractmethod
    def touch(self, name: str) -> None:
        """Make a claim young again."""

    @abstractmethod
    def age_seconds(self, name: str) -> float:
        """Seconds since a claim was written or touched; 0 when it is gone."""


def part_name(name: str) -> str:
    """Return where this process writes a file aside, named so that others can sweep it."""
    return f"{ASIDE}/{name.replace('/', '-')}~{host()}~{os.getpid()}~{secrets.token_hex(4)}.part"


@functools.cache
def host() -> str:
    """Return where a process number means something: the host, with the PID namespace."""
    try:
        namespace = re.sub(r"\D", "", os.readlink("/proc/self/ns/pid"))
    except OSError:
        namespace = ""
    name = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())  # for file names
    return "-".join(filter(None, [name, namespace]))


def canonical_json(value: object) -> str:
    """One text per value: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )

"""The data of a source: samples, their entries, and the shards of a stream.

Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """A source's knowledge of a sample, without opening its media.

    Args:
        key: unique and stable name of the sample within its source, such as its full relative path.
        stamp: text that changes when the media changes (size and modification time, an etag, a row
            hash).
        attributes: caption, label and so on: JSON-like scalars or lists of them.
    """

    key: str
    stamp: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """One item of a source.

    Args:
        key: unique and stable name within the source.
        media: undecoded: `bytes`, a path (`os.PathLike`), or a `str` that *is* the media (a text).
        attributes: caption, label and so on: JSON-like scalars or lists of them.
        stamp: text that changes when the media changes.
        span: start and end in seconds of the part of a video or audio that the sample is; None: all
            of it.
    """

    key: str
    media: object
    attributes: Mapping[str, Any] = field(default_factory=dict)
    stamp: str = ""
    span: tuple[float, float] | None = None

    def read(self) -> bytes:
        """Return the media's bytes; a path is read from disk on every call.

        Raises:
            OSError: the file can't be reached.
            TypeError: the media is of another kind.
        """
        if isinstance(self.media, bytes):
            return self.media
        if isinstance(self.media, os.PathLike):
            file = self.media if hasattr(self.media, "read_bytes") else Path(self.media)
            return bytes(file.read_bytes())
        if isinstance(self.media, str):
            return self.media.encode("utf-8", "surrogateescape")
        raise TypeError(
            f"sample {self.key!r}: media is {type(self.media).__name__}, not bytes, a path or a"
            " text"
        )

    def content(self) -> str:
        """Return the sha256 of the media, and of the span if there is one, as 64 hexadecimal
        digits.

        A file is hashed without holding it in memory.

        Raises:
            OSError: the file can't be reached.
        """
        if isinstance(self.media, os.PathLike):
            digest = (
                _hash_file(Path(self.media))
                if self.span is None
                else _hash_unchanged(Path(self.media), file_state(self.media))
            )
        else:
            digest = hashlib.sha256(self.read()).hexdigest()
        return (
            digest
            if self.span is None
            else hashlib.sha256(f"{digest} {self.span[0]!r} {self.span[1]!r}".encode()).hexdigest()
        )


@dataclass(frozen=True)
class Remark:
    """A note on something that a source found but doesn't use, or uses in another way: files left
    out, captions missing.

    Args:
        text: one line without the count, such as "left out by their ending .heic".
        count: number of files or samples that the note is about.
        example: one of them, such as a relative path; may be empty.
    """

    text: str
    count: int = 1
    example: str = ""

    def __str__(self) -> str:
        """Return one line with count, text and example."""
        example = one_line(self.example)
        return f"{self.count}: {self.text}" + (f", such as {example}" if example else "")


def one_line(text: str) -> str:
    """Return a text, such as a file name, with line breaks and control characters escaped."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


@dataclass(frozen=True)
class Shard:
    """A piece of a stream that is read from its start to its end, such as one tar file."""

    name: str
    stamp: str = ""


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: os.PathLike[str]) -> tuple[int, int]:
    """Return size in bytes and modification time in nanoseconds, which change when the file does.

    Raises:
        OSError: the file can't be reached.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def num_bytes(path: os.PathLike[str]) -> int:
    """Return the size of a file; a file at a URL isn't downloaded for this.

    Raises:
        OSError: the file can't be reached.
    """
    known: int | None = getattr(path, "num_bytes", None)
    return os.path.getsize(path) if known is None else known


@functools.lru_cache(maxsize=64)
def _hash_unchanged(path: Path, state: tuple[int, int]) -> str:
    """Return the hash of a file; for many samples in one file it is read once, unless it changes.
    """
    return _hash_file(path)

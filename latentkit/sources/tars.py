"""The files in a tar, by their place in it, so that any of them is read without the others;
compressed ones are unpacked once.
"""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import hashlib
import io
import lzma
import os
import re
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets

from latentkit.sources.files import Files

PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""First bytes of compressed files to what unpacks them; the file's name may hide it."""

OWN_FILES = re.compile(r"__[^/]*__([/.]|$)|(.*/)?(\.|PaxHeaders?)")
"""Names that are no data: webdataset's own, and hidden ones such as macOS's "._a.jpg"."""

BZ2_DAMAGE = "Invalid data stream"
"""What `bz2` says of it, in an error that is no other than that of a disk."""
COPIED_BYTES = 1 << 16
"""Little, since what is read together with damage is lost."""
MAX_GAPS = 1 << 16
"""Bytes between the files of a sample that are read with them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: name without "./", place of its bytes, size, and if all are there."""

    name: str
    offset: int
    size: int
    is_whole: bool = True


@dataclass(frozen=True)
class Tar:
    """A tar to read parts of.

    Args:
        name: path relative to the files, with "/".
        unpacked: a copy of it that isn't compressed; None where it is not.
    """

    files: Files
    name: str
    unpacked: Path | None = None

    def open(self) -> IO[bytes]:
        """The uncompressed tar.

        Raises:
            OSError: it can't be reached.
        """
        return self.files.open(self.name) if self.unpacked is None else self.unpacked.open("rb")

    def open_part(self, members: Iterable[Member]) -> IO[bytes]:
        """The uncompressed tar, to read these files of it; at a URL no others are asked for.

        Raises:
            OSError: it can't be reached.
        """
        read = getattr(self.files, "read_range", None)
        if read is None or self.unpacked is not None:
            return self.open()
        return io.BufferedReader(_Part(functools.partial(read, self.name), list(members)), 1)


class _Part(io.RawIOBase):
    """Files in a tar at a URL, by one request where they lie together, else by one each."""

    def __init__(self, read: Callable[[int, int], bytes], members: Sequence[Member]) -> None:
        self._read_range, self._place, self._start, self._held = read, 0, 0, b""
        whole = [member for member in members if member.is_whole]
        if whole:
            self._start = min(member.offset for member in whole)
            stop = max(member.offset + member.size for member in whole)
            if stop - self._start <= sum(member.size for member in whole) + MAX_GAPS:
                self._held = read(self._start, stop)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only places from the start")
        self._place = offset
        return offset

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        begin = self._place - self._start
        content = self._held[begin : begin + len(buffer)] if begin >= 0 else b""
        if len(content) == 0 < len(buffer):
            content = self._read_range(self._place, self._place + len(buffer))
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


def open_tar(files: Files, name: str, stamp: str) -> Tar:
    """Open a tar; a compressed one is unpacked into `datasets`' cache, once for each stamp.

    Raises:
        OSError: it can't be reached, or there is no room to unpack it.
    """
    with files.open(name) as file:
        first = file.read(max(map(len, PACKED)))
        unpack = next((unpack for mark, unpack in PACKED.items() if first.startswith(mark)), None)
        if unpack is None:
            return Tar(files, name)
        digest = hashlib.sha256(
            f"{files.name(name)} {stamp}".encode("utf-8", "surrogatepass")
        ).hexdigest()[:32]
        target = Path(datasets.config.HF_DATASETS_CACHE) / "latentkit-tars" / f"{digest}.tar"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.seek(0)
            _unpack(unpack(file), target)
        return Tar(files, name, target)


def _unpack(packed: IO[bytes], target: Path) -> None:
    """Write what can be read of it; where it is damaged, a note beside the copy says why."""
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".unpacking-")
    try:
        with os.fdopen(handle, "wb") as copy:
            if damage := _copy(packed, copy):
                _note_of(target).write_text(damage, encoding="utf-8")
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def _copy(packed: Any, copy: IO[bytes]) -> str:
    """Copy as far as it goes; what ended it, or "" at the end."""
    try:
        while content := packed.read1(COPIED_BYTES):
            copy.write(content)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as err:
        return str(err)
    except OSError as err:
        if err.args != (BZ2_DAMAGE,):
            raise
        return str(err)
    return ""


def _note_of(unpacked: Path) -> Path:
    """What says that a tar was damaged when it was unpacked, which the copy need not show."""
    return unpacked.with_suffix(".damage")


def list_members(tar: Tar) -> tuple[list[Member], str]:
    """The files in a tar in their order, and what is wrong with it, or "" where nothing is.

    Raises:
        OSError: it can't be reached.
    """
    with tar.open() as file:
        num_bytes = file.seek(0, os.SEEK_END)
        if num_bytes == 0:
            return [], "empty file: 0 bytes"
        members: list[Member] = []
        damage = ""
        try:
            _walk(file, num_bytes, members)
        except tarfile.TarError as err:
            damage = f"damaged: {err}" if members else f"not a tar: {err}"
    if not damage and tar.unpacked is not None and _note_of(tar.unpacked).exists():
        damage = f"damaged: {_note_of(tar.unpacked).read_text(encoding='utf-8')}"
    return [member for member in members if not OWN_FILES.match(member.name)], damage


def _walk(file: IO[bytes], num_bytes: int, members: list[Member]) -> None:
    """Append the files in a tar, from its headers alone."""
    file.seek(0)
    opened: Any = tarfile.TarFile(fileobj=file)
    # tarfile takes what is no header for the end, and doesn't say that a tar is cut off
    with contextlib.suppress(tarfile.ReadError):
        while (entry := opened.next()) is not None:
            if entry.isreg():
                start, end = entry.offset_data, entry.offset_data + entry.size
                name = entry.name.removeprefix("./")
                members.append(Member(name, start, entry.size, end <= num_bytes))
            opened.members = []  # which tarfile would keep all of
    file.seek(opened.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("cut off: it lacks the zeros that end a tar")
    if any(block):
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        raise tarfile.ReadError("no header where one is expected")

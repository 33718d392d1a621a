"""The files in a tar by their position, so any of them can be read without the others. Compressed
tars are unpacked once.
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

from latentkit.runtime.file_endings import TAR_ENDINGS
from latentkit.sources.files import Files

DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""First bytes of compressed files to their decompressor. The file's name may be misleading."""

IGNORED_NAMES = re.compile(r"__[^/]*__([/.]|$)|(.*/)?(\.|PaxHeaders?)")
"""Names that aren't data: webdataset's own, and hidden ones such as macOS's "._a.jpg"."""

BZ2_DAMAGE = "Invalid data stream"
"""Message of `bz2` on damaged data. Its error type is the same as for a disk error."""
COPIED_BYTES = 1 << 16
"""A small number, because everything read together with damage is lost."""
MAX_GAPS = 1 << 16
"""Most bytes between the files of a sample that are read in the same request."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name without a leading "./", the offset of its bytes, their number, and
    whether the tar contains all of them.
    """

    name: str
    offset: int
    size: int
    is_whole: bool = True


@dataclass(frozen=True)
class Tar:
    """A tar to read parts of.

    Args:
        name: path relative to the files, with "/".
        unpacked: an uncompressed copy; None if the tar isn't compressed.
    """

    files: Files
    name: str
    unpacked: Path | None = None

    def open(self) -> IO[bytes]:
        """Open the uncompressed tar.

        Raises:
            OSError: the tar can't be reached.
        """
        return self.files.open(self.name) if self.unpacked is None else self.unpacked.open("rb")

    def open_part(self, members: Iterable[Member]) -> IO[bytes]:
        """Open the uncompressed tar to read only these files. At a URL no other bytes are
        requested.

        Raises:
            OSError: the tar can't be reached.
        """
        read = getattr(self.files, "read_range", None)
        if read is None or self.unpacked is not None:
            return self.open()
        return io.BufferedReader(_Part(functools.partial(read, self.name), list(members)), 1)


class _Part(io.RawIOBase):
    """Files in a tar at a URL: one request if they are adjacent, else one each."""

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
            raise io.UnsupportedOperation("only offsets from the start")
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


def is_tar(path: str) -> bool:
    """Whether a file's name says that it is a tar."""
    return path.lower().endswith(TAR_ENDINGS)


def open_tar(files: Files, name: str, stamp: str) -> Tar:
    """Open a tar. A compressed one is unpacked into the cache of the library `datasets`, once for
    each stamp.

    Raises:
        OSError: the tar can't be reached, or the disk has no space to unpack it.
    """
    with files.open(name) as file:
        first = file.read(max(map(len, DECOMPRESSORS)))
        unpack = next(
            (unpack for mark, unpack in DECOMPRESSORS.items() if first.startswith(mark)), None
        )
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
    """Write everything that can be unpacked. If the tar is cut off or damaged, the copy ends there
    and a note next to it says why.
    """
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".unpacking-")
    try:
        with os.fdopen(handle, "wb") as copy:
            if damage := _copy(packed, copy):
                _damage_note(target).write_text(damage, encoding="utf-8")
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def _copy(packed: Any, copy: IO[bytes]) -> str:
    """Copy as much as possible, and return what ended the copy, or "" at the end."""
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


def _damage_note(unpacked: Path) -> Path:
    """Return the path of the note that a tar was damaged when it was unpacked, which the copy may
    not show.
    """
    return unpacked.with_suffix(".damage")


def list_members(tar: Tar) -> tuple[list[Member], str]:
    """Return the files in a tar in order, and what is wrong with it ("" if nothing is).

    Raises:
        OSError: the tar can't be reached.
    """
    with tar.open() as file:
        num_bytes = file.seek(0, os.SEEK_END)
        if num_bytes == 0:
            return [], "empty file: 0 bytes"
        members: list[Member] = []
        damage = ""
        try:
            _walk_headers(file, num_bytes, members)
        except tarfile.TarError as err:
            damage = f"damaged: {err}" if members else f"not a tar: {err}"
    if not damage and tar.unpacked is not None and _damage_note(tar.unpacked).exists():
        damage = f"damaged: {_damage_note(tar.unpacked).read_text(encoding='utf-8')}"
    return [member for member in members if not IGNORED_NAMES.match(member.name)], damage


def _walk_headers(file: IO[bytes], num_bytes: int, members: list[Member]) -> None:
    """Append the files in a tar, reading only its headers. This is three times as fast as
    `tarfile`.

    It reads ustar headers, with long names and sizes as pax and GNU write them; see
    https://pubs.opengroup.org/onlinepubs/9699919799/utilities/pax.html

    Raises:
        tarfile.ReadError: a header is invalid, or the tar is cut
        off.
        _UnusualTarError: the tar contains something that isn't read here.
    """
    file.seek(0)
    opened: Any = tarfile.TarFile(fileobj=file)
    # tarfile takes what is no header for the end, and doesn't say that a tar is cut off
    with contextlib.suppress(tarfile.ReadError):
        while (entry := opened.next()) is not None:
            if entry.isreg():
                start, end = entry.offset_data, entry.offset_data + entry.size
                name = entry.name.removeprefix("./")
                members.append(Member(name, start, entry.size, end <= num_bytes))
            opened.members = []  # tarfile would keep all of them
    file.seek(opened.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("cut off: the zeros at the end of a tar are missing")
    if any(block):
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        raise tarfile.ReadError("no header where one is expected")

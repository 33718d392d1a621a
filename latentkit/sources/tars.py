"""The files in a tar, by their place in it, so that any of them is read without the others; compressed ones are unpacked once."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets

from latentkit.sources.files import Files

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""First bytes of compressed files to what unpacks them; the file's name may hide it."""

OWN_FILES = re.compile(r"__[^/]*__([/.]|$)|(.*/)?(\.|PaxHeaders?)")
"""Names that are no data: webdataset's own, and hidden ones such as macOS's "._a.jpg"."""

COPIED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar: its name without a leading "./", where its bytes begin, how many they are, and whether all are there."""

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


def open_tar(files: Files, name: str, stamp: str) -> Tar:
    """The tar of a name; a compressed one is unpacked into the cache of the library `datasets`, once for each stamp.

    Raises:
        OSError: it can't be reached, or there is no room to unpack it.
    """
    with files.open(name) as file:
        first = file.read(max(map(len, PACKED)))
        unpack = next((unpack for mark, unpack in PACKED.items() if first.startswith(mark)), None)
        if unpack is None:
            return Tar(files, name)
        digest = hashlib.sha256(f"{files.name(name)} {stamp}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
        target = Path(datasets.config.HF_DATASETS_CACHE) / "latentkit-tars" / f"{digest}.tar"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            file.seek(0)
            _unpack(unpack(file), target)
        return Tar(files, name, target)


def _unpack(packed: IO[bytes], target: Path) -> None:
    """Write what can be read of it; where it is cut off, so is the copy."""
    handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".unpacking-")
    try:
        with os.fdopen(handle, "wb") as copy, contextlib.suppress(EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile):
            shutil.copyfileobj(packed, copy, COPIED_BYTES)
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise


def list_members(tar: Tar) -> tuple[list[Member], str]:
    """The files in a tar in their order, and what is wrong with it, or "" where nothing is.

    Raises:
        OSError: it can't be reached.
    """
    members: list[Member] = []
    with tar.open() as file:
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        if num_bytes == 0:
            return [], "empty file: 0 bytes"
        try:
            opened: Any = tarfile.TarFile(fileobj=file)
        except tarfile.TarError as err:
            return [], f"not a tar: {err}"
        damage = ""
        try:
            while (entry := opened.next()) is not None:
                end = entry.offset_data + entry.size
                if entry.isreg():
                    members.append(Member(entry.name.removeprefix("./"), entry.offset_data, entry.size, end <= num_bytes))
                opened.members = []  # which tarfile would keep all of
        except tarfile.TarError as err:
            damage = f"damaged: {err}"
        file.seek(opened.offset)
        last = file.read(tarfile.BLOCKSIZE)
        if not damage and (len(last) < tarfile.BLOCKSIZE or any(last)):
            damage = "cut off: it lacks the zeros that end a tar"
    return [member for member in members if not OWN_FILES.match(member.name)], damage

"""The files below a folder: their names, stamps and bytes.

What another kind of storage has to do for the source `folder`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from latentkit.errors import SourceError
from latentkit.runtime.file_endings import LATENT_DATASET


@dataclass
class Listing:
    """What lies below a folder, as paths relative to it with "/".

    Args:
        files: all files that count, in no order.
        hidden: files and folders whose name begins with a dot; not looked into.
        latent_datasets: folders that hold an earlier output, whose preview is no sample; not looked
            into.
    """

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    latent_datasets: list[str] = field(default_factory=list)


class Files(Protocol):
    """Files below one place, by their relative path with "/".

    Picklable, and safe to use from several threads.
    """

    def list(self, recursive: bool) -> Listing:
        """Everything below the place, or directly in it.

        Raises:
            SourceError: there is no such place, or it can't be read.
        """
        ...

    def stamp(self, path: str) -> str:
        """What changes when the file does.

        Raises:
            SourceError: it is not a file, or is gone.
        """
        ...

    def read(self, path: str) -> bytes:
        """All bytes of a file.

        Raises:
            OSError: it can't be reached.
        """
        ...

    def open(self, path: str) -> IO[bytes]:
        """A file to read parts of; large tables are not read whole.

        Raises:
            OSError: it can't be reached.
        """
        ...

    def media(self, path: str) -> object:
        """What a sample has as its media: a path, or bytes."""
        ...

    def name(self, path: str) -> str:
        """The file's full path or URL, for people."""
        ...

    def below(self, folder: str) -> Files:
        """The same of a folder in it."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder of this machine; a stamp is size and time of change in ns."""

    root: Path

    def list(self, recursive: bool) -> Listing:
        """See `Files`; links are followed, but never in a circle."""
        if not self.root.is_dir():
            what = "is a file, not a folder" if self.root.exists() else "does not exist"
            expected = "expected a folder of media files; the source datasets reads tars and tables"
            raise SourceError(f"source folder: {self.root} {what}; {expected}")
        listing = Listing()
        try:
            self._visit("", frozenset(), recursive, listing)
        except OSError as err:
            raise SourceError(f"source folder: {self.root} can't be read: {err}") from err
        return listing

    def stamp(self, path: str) -> str:
        """See `Files`."""
        try:
            status = os.stat(self.root / path)
        except (FileNotFoundError, NotADirectoryError):
            status = None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise SourceError(
                f"source folder: {self.root / path} is a link to nothing, or not a file; repair or"
                " remove it"
            )
        return f"{status.st_size}-{status.st_mtime_ns}"

    def read(self, path: str) -> bytes:
        """See `Files`."""
        return (self.root / path).read_bytes()

    def open(self, path: str) -> IO[bytes]:
        """See `Files`."""
        return (self.root / path).open("rb")

    def media(self, path: str) -> Path:
        """The file's path."""
        return self.root / path

    def name(self, path: str) -> str:
        """The file's full path."""
        return os.fspath(self.root / path)

    def below(self, folder: str) -> LocalFiles:
        """See `Files`."""
        return LocalFiles(self.root / folder)

    def _visit(
        self, folder: str, above: frozenset[tuple[int, int]], recursive: bool, listing: Listing
    ) -> None:
        """Note all in a folder, then in those below it; `above` are those it lies in."""
        status = os.stat(os.path.join(self.root, folder))
        identity = (status.st_dev, status.st_ino)
        # A link to a folder that holds it. Some network disks give every folder the number 0.
        if status.st_ino and identity in above:
            return
        with os.scandir(os.path.join(self.root, folder)) as found:
            entries = list(found)
        if folder and {entry.name for entry in entries} >= LATENT_DATASET:
            listing.latent_datasets.append(folder)
            return
        listing.hidden += [folder + entry.name for entry in entries if entry.name.startswith(".")]
        shown = [entry for entry in entries if not entry.name.startswith(".")]
        below = [f"{folder}{entry.name}/" for entry in shown if entry.is_dir()]
        listing.files += [folder + entry.name for entry in shown if not entry.is_dir()]
        if recursive:
            for path in below:
                self._visit(path, above | {identity}, recursive, listing)

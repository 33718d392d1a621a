"""The files below a folder: names, stamps and bytes. `Files` is what another kind of storage
implements for the source `folder`.
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
    """What is below a folder, as relative paths with "/".

    Args:
        files: all files to consider, in no order.
        hidden: files and folders whose name starts with a dot. They are not searched.
        latent_datasets: folders with an earlier output. They are not searched, because a preview
            isn't a sample.
    """

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    latent_datasets: list[str] = field(default_factory=list)


class Files(Protocol):
    """Files below one folder or URL, by relative path with "/".

    Picklable, and safe to use from several threads.
    """

    def list(self, recursive: bool) -> Listing:
        """List everything below the folder, or only directly in it.

        Raises:
            SourceError: the folder doesn't exist or can't be read.
        """
        ...

    def stamp(self, path: str) -> str:
        """Return a text that changes when the file does.

        Raises:
            SourceError: the path is missing or isn't a file.
        """
        ...

    def read(self, path: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            OSError: the file can't be reached.
        """
        ...

    def open(self, path: str) -> IO[bytes]:
        """Open a file to read parts of it, because large tables are not read as a whole.

        Raises:
            OSError: the file can't be reached.
        """
        ...

    def media(self, path: str) -> object:
        """Return the file as a sample's media: a path, or bytes."""
        ...

    def name(self, path: str) -> str:
        """Return the file's full path or URL, for messages."""
        ...

    def below(self, folder: str) -> Files:
        """Return the files below a folder in this one."""
        ...


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder on this machine. A stamp is the size and modification time in ns."""

    root: Path

    def list(self, recursive: bool) -> Listing:
        """See `Files`. Links are followed, but never in a circle."""
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
                f"source folder: {self.root / path} is a broken link or not a file. Repair or"
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
        """Return the file's path."""
        return self.root / path

    def name(self, path: str) -> str:
        """Return the file's full path."""
        return os.fspath(self.root / path)

    def below(self, folder: str) -> LocalFiles:
        """See `Files`."""
        return LocalFiles(self.root / folder)

    def _visit(
        self, folder: str, above: frozenset[tuple[int, int]], recursive: bool, listing: Listing
    ) -> None:
        """List everything in one folder ("" or ending in "/"), then in its subfolders; `above`
        identifies the folders that contain it.
        """
        status = os.stat(os.path.join(self.root, folder))
        identity = (status.st_dev, status.st_ino)
        # A link to a folder that contains it. Some network disks number every folder 0.
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

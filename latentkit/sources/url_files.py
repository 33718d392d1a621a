"""Files at a URL that fsspec has a driver for: a bucket's prefix, or any other storage that can
list files and read them by name.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from latentkit.errors import SourceError, StoreError
from latentkit.runtime.file_endings import LATENT_DATASET
from latentkit.sources.files import Listing
from latentkit.store.unit_cache import open_cache
from latentkit.store.url_folder import UrlFolder

SMALL_BYTES = 64 << 10
"""Files up to this size that are read one after the other, such as captions, are fetched together
and kept.
"""

ONE_REQUEST_BYTES = 32 << 20
"""A larger file may be fetched in several parts at the same time."""

FETCHED_AHEAD = 256
KEPT_BYTES = 256 << 20
HELD_BYTES = 64 << 20
"""A file up to this size is read whole, in one request, when it is opened."""

COPIES_BYTES = 4 << 30
"""Most bytes of local copies that are kept for later samples of the same file, in addition to those
in use.
"""

TIMES = (
    "LastModified",
    "Last-Modified",
    "last_modified",
    "mtime",
    "updated",
    "modified",
    "timeModified",
    "created",
)
ETAGS = ("ETag", "etag", "Content-MD5", "md5Hash", "content_md5", "sha256", "sha1", "checksum")


class UrlFiles:
    """`Files` at a URL. A stamp is the size with the etag, or else with the modification time.

    Requests that fail temporarily are sent again; see `store.outage`.

    Args:
        url: URL of the folder, such as s3://bucket/photos.

    Raises:
        SourceError: the driver is missing or can't be set up.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with _as_source_error():
            self._folder = UrlFolder(self.url, open_cache(None))
        self._states: dict[str, tuple[str, int]] = {}
        self._is_listed = False
        self._ahead = _ReadAhead(self)
        self._copies = _Copies(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.url, self._states)

    @property
    def num_kept_bytes(self) -> int:
        """Bytes of small files that were fetched ahead and are kept."""
        return self._ahead.num_bytes

    def list(self, recursive: bool) -> Listing:
        """See `Files`."""
        with _as_source_error():
            found = self._folder.find(recursive)
        if set(found) == {""}:
            raise SourceError(
                f"source {self.url} is a file, not a folder; expected a folder of media files"
            )
        if not found:
            raise SourceError(
                f"source {self.url}: there are no files below this URL; check its spelling, and"
                " that it is a folder"
            )
        found.pop("", None)  # an object that stands for the folder itself
        listing = Listing()
        datasets = _latent_datasets(found)
        for path in found:
            if (folder := _folder_among(path, datasets)) is not None:
                listing.latent_datasets.append(folder)
            elif (hidden := _hidden_part(path)) is not None:
                listing.hidden.append(hidden)
            else:
                listing.files.append(path)
        listing.latent_datasets = sorted(set(listing.latent_datasets))
        listing.hidden = sorted(set(listing.hidden))
        self._is_listed = self._is_listed or recursive
        self._states |= {path: _state(found[path]) for path in listing.files}
        self._ahead.start(sorted(listing.files))
        return listing

    def describe_files(self, paths: Sequence[str]) -> None:
        """Request size and stamp of these files, without listing all.

        Raises:
            SourceError: a file doesn't exist.
        """
        with _as_source_error():
            found = self._folder.ask_each(self._folder.describe, paths)
        self._states |= zip(paths, map(_state, found), strict=True)

    def below(self, folder: str) -> UrlFiles:
        """See `Files`."""
        return UrlFiles(self.name(folder))

    def stamp(self, path: str) -> str:
        """See `Files`. For the first unknown file, all files are listed.

        Raises:
            StoreError: the files can't be listed.
        """
        if path not in self._states and not self._is_listed:
            if self.url.startswith("http"):  # which lists pages with links, if anything
                self.describe_files([path])
            else:
                self._list_all()
        if path not in self._states:
            raise SourceError(f"source {self.name(path)}: there is no such file")
        return self._states[path][0]

    def _list_all(self) -> None:
        try:
            self.list(recursive=True)
        except SourceError as error:  # which would mean that this file isn't there
            raise StoreError(str(error)) from error

    def size(self, path: str) -> int:
        """Return the size of a file in bytes, as listed."""
        return self._states.get(path, ("", 0))[1]

    def read(self, path: str) -> bytes:
        """Return all bytes of a file.

        Raises:
            FileNotFoundError: the file doesn't exist any more.
            SourceError: the file couldn't be reached for too long.
        """
        try:
            return self._ahead.read(path) if self.size(path) <= SMALL_BYTES else self.fetch(path)
        except SourceError as error:
            if isinstance(error.__cause__, StoreError) and _is_gone(error.__cause__):
                raise FileNotFoundError(str(error)) from error
            raise

    def read_range(self, path: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file, in one request.

        Raises:
            SourceError: the file is missing or can't be reached.
        """
        with _as_source_error():
            content = self._folder.read_range(path, start, stop)
        # Some web servers don't support ranges, and send the whole file.
        is_whole = len(content) == self.size(path) > stop - start
        return content[start:stop] if is_whole else content

    def fetch(self, path: str) -> bytes:
        """Read like `read`, always with a new request."""
        with _as_source_error():
            return self._fetch(path)

    def _fetch(self, path: str) -> bytes:
        size = self.size(path)
        if 0 < size <= ONE_REQUEST_BYTES:
            content = self._folder.read_range(
                path, 0, size + 1
            )  # for a whole file some drivers ask for its size first
            if len(content) == size:
                return content
        return self._folder.read(path)

    def fetch_each(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Return the bytes of those files that exist, with many requests at once."""
        with _as_source_error():
            found = zip(paths, self._folder.ask_each(self._fetch_if_there, paths), strict=True)
        return {path: content for path, content in found if content is not None}

    def _fetch_if_there(self, path: str) -> bytes | None:
        """Return the bytes of a file; None if it doesn't exist."""
        try:
            return self._fetch(path)
        except StoreError as error:
            if _is_gone(error):
                return None
            raise

    def open(self, path: str) -> IO[bytes]:
        """See `Files`. A large file is read part by part."""
        if self.size(path) <= HELD_BYTES:
            return io.BytesIO(self.fetch(path))
        with _as_source_error():
            return self._folder.open_file(path)

    def media(self, path: str) -> RemoteFile:
        """Return the file, which is fetched when it is first read."""
        return RemoteFile(self, path)

    def name(self, path: str) -> str:
        """Return the file's URL."""
        return f"{self.url}/{path}".rstrip("/")

    def copy(self, path: str) -> LocalCopy:
        """Return a local copy of the file. Recently used copies are kept."""
        return self._copies.get(path)

    def download(self, path: str, copy: Path) -> None:
        """Download a file to a local path.

        Raises:
            SourceError: the file is missing, changes during the download, or can't be reached.
        """
        with _as_source_error():
            self._folder.download(path, copy)


def _rebuild(url: str, states: Mapping[str, tuple[str, int]]) -> UrlFiles:
    files = UrlFiles(url)
    files._states, files._is_listed = dict(states), True
    return files


def _state(described: Mapping[str, Any]) -> tuple[str, int]:
    """Return stamp and size of a file from the storage's description."""
    size = int(described.get("size") or 0)
    marks = (str(described[name]).strip('"') for name in (*ETAGS, *TIMES) if described.get(name))
    return "-".join([str(size), *itertools.islice(marks, 1)]), size


class RemoteFile(os.PathLike[str]):
    """A file at a URL. It is read in one request, or as a local copy while this object exists."""

    def __init__(self, files: UrlFiles, path: str) -> None:
        self._files, self._path = files, path
        self._copy: LocalCopy | None = None

    def __repr__(self) -> str:
        return f"RemoteFile({self._files.name(self._path)!r})"

    def __str__(self) -> str:
        return self._files.name(self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_file, (self._files.url, self._path, self._files._states.get(self._path))

    @property
    def num_bytes(self) -> int:
        """Size of the file in bytes, as listed."""
        return self._files.size(self._path)

    def read_bytes(self) -> bytes:
        """Return all bytes.

        Raises:
            SourceError: the file is missing or can't be reached.
        """
        return self._files.fetch(self._path) if self._copy is None else self._copy.path.read_bytes()

    def __fspath__(self) -> str:
        """Return the path of a local copy, which is kept as long as this object.

        Raises:
            SourceError: the file is missing or can't be reached.
        """
        if self._copy is None:
            self._copy = self._files.copy(self._path)
        return str(self._copy.path)


def _rebuild_file(url: str, path: str, state: tuple[str, int] | None) -> RemoteFile:
    return RemoteFile(_rebuild(url, {} if state is None else {path: state}), path)


class LocalCopy:
    """A local file that is removed with the last reference to this object, or when the process
    ends.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self.num_bytes = path, num_bytes
        weakref.finalize(self, path.unlink, missing_ok=True)


class _Copies:
    """Local copies of files. The most recently used copies are kept."""

    def __init__(self, files: UrlFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, LocalCopy] = OrderedDict()
        self._busy: dict[str, threading.Lock] = {}

    def get(self, path: str) -> LocalCopy:
        """Return the copy of a file. If several threads need it, one of them downloads it."""
        with self._lock:
            busy = self._busy.setdefault(path, threading.Lock())
        with busy:
            with self._lock:
                copy = self._kept.pop(path, None)
            if copy is None:
                copy = self._fetch(path)
            with self._lock:
                self._kept[path] = copy
                self._busy.pop(path, None)
                while (
                    len(self._kept) > 1
                    and sum(one.num_bytes for one in self._kept.values()) > COPIES_BYTES
                ):
                    self._kept.popitem(last=False)
        return copy

    def _fetch(self, path: str) -> LocalCopy:
        try:
            with tempfile.NamedTemporaryFile(
                prefix="latentkit-", suffix=Path(path).suffix, delete=False
            ) as file:
                copy = LocalCopy(Path(file.name), self._files.size(path))
        except OSError as error:
            raise SourceError(
                f"{self._files.name(path)}: no copy in {tempfile.gettempdir()} (TMPDIR):"
                f" {error.strerror}"
            ) from error
        self._files.download(path, copy.path)
        return copy


class _ReadAhead:
    """Fetches small files together with the next files of the same ending, in the order of paths.
    """

    def __init__(self, files: UrlFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self.num_bytes = 0
        self._order: defaultdict[str, list[str]] = defaultdict(list)
        self._places: dict[str, int] = {}
        self._frontiers: dict[str, int] = {}

    def start(self, paths: Sequence[str]) -> None:
        """Expect these files to be read next, in this order, and drop the contents that were kept.
        """
        for kept in (self._kept, self._order, self._places, self._frontiers):
            kept.clear()
        self.num_bytes = 0
        for path in paths:
            if self._files.size(path) <= SMALL_BYTES:
                row = self._order[_ending(path)]
                self._places[path] = len(row)
                row.append(path)

    def read(self, path: str) -> bytes:
        """Return the bytes of a file, with a request only if they aren't kept yet."""
        with self._lock:
            if path in self._kept:
                return self._kept[path]
            place, ending = self._places.get(path, -1), _ending(path)
            if place == 0 or place >= self._frontiers.get(
                ending, 0
            ):  # others were dropped, and are asked for in any order
                wanted = self._order[ending][place : place + FETCHED_AHEAD]
                found = self._files.fetch_each(wanted)
                self._frontiers[ending] = place + len(wanted)
                self._keep(found)
                if path in found:
                    return found[path]
        return self._files.fetch(path)

    def _keep(self, contents: Mapping[str, bytes]) -> None:
        for path, content in contents.items():
            self._kept[path] = content
            self.num_bytes += len(content)
        while self.num_bytes > KEPT_BYTES:
            self.num_bytes -= len(self._kept.popitem(last=False)[1])


@contextmanager
def _as_source_error() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise SourceError(f"source {error}") from error


def _is_gone(error: StoreError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _latent_datasets(paths: Mapping[str, Any]) -> set[str]:
    """Return the folders, "" or ending in "/", that contain an earlier output below the top."""
    inside: dict[str, set[str]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) - 1):
            inside.setdefault("/".join(parts[:depth]) + "/", set()).add(parts[depth])
    return {folder for folder, names in inside.items() if names >= LATENT_DATASET}


def _folder_among(path: str, folders: set[str]) -> str | None:
    parts = path.split("/")
    above = ("/".join(parts[:depth]) + "/" for depth in range(1, len(parts)))
    return next((folder for folder in above if folder in folders), None)


def _hidden_part(path: str) -> str | None:
    """Return the path up to its first name that starts with a dot."""
    parts = path.split("/")
    depth = next((number for number, part in enumerate(parts, 1) if part.startswith(".")), None)
    return None if depth is None else "/".join(parts[:depth])

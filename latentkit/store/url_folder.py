"""`UrlFolder`: a latent dataset's folder on an object store, or anything else that fsspec has a
driver for.

The first commit wins through a conditional request (on S3 a PUT with `If-None-Match: *`; for a
large file the last of its requests). S3, Google Cloud Storage and compatible stores support it, and
there a file exists completely or not at all. With a driver without such a request, a file is
written under another name, the final name is checked, and the file is moved. Two processes that
commit the same name at the same moment may then both believe that they were first.

Drivers find credentials themselves: in the environment, configuration files (AWS_ENDPOINT_URL,
AWS_PROFILE and others) or fsspec's configuration.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ParamSpec, TypeVar

from fsspec.asyn import AsyncFileSystem

from latentkit.errors import StoreError
from latentkit.store.folder import Folder, part_name
from latentkit.store.outage import Outage
from latentkit.store.unit_cache import UnitCache
from latentkit.store.url_driver import open_driver

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
Send = Callable[..., object]
"""Takes a driver, the driver's path and its `mode`, and writes a file."""

BLOCK_BYTES = 4 << 20
"""Fewest bytes that one request reads of an open file."""

MAX_REQUESTS = 32
"""Files that are checked at once, each with a few requests one after the other."""

CLOCK_SKEW_SECONDS = 900.0
"""What this machine's clock and the store's may differ by; S3 refuses requests from a clock that is
further off.
"""


class UrlFolder(Folder):
    """A folder at a URL. While it can't be reached its users wait, as `Outage` says."""

    def __init__(self, url: str, cache: UnitCache) -> None:
        self.url = url.rstrip("/")
        self.cache = cache
        self._outage = Outage(self.url)
        self._claims: dict[str, str] = {}
        self._claims_seen: dict[str, tuple[str, float]] = {}
        self._found_bucket = False
        self._connect()

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[UrlFolder], tuple[str, UnitCache]]:
        return UrlFolder, (self.url, self.cache)

    def _connect(self) -> None:
        """Open the driver, and find out whether it can create a file only if it doesn't exist."""
        self._fs, self._root = open_driver(self.url)
        self._pid = os.getpid()
        method = getattr(type(self._fs), "_put_file", AsyncFileSystem._put_file)
        self._has_create = (
            method is not AsyncFileSystem._put_file
            and "mode" in inspect.signature(method).parameters
        )

    @property
    def fs(self) -> Any:
        """Return the fsspec driver. A forked process gets its own, because a driver has connections
        and a thread.
        """
        if self._pid != os.getpid():
            self._connect()
        return self._fs

    # ------------------------------------------------------------ looking and reading

    def exists(self, name: str) -> bool:
        return self._info(name) is not None

    def top_names(self) -> set[str]:
        return set(self._names(""))

    def list(self, folder: str) -> list[str]:
        return sorted(name for name in self._names(folder) if not name.startswith("."))

    def _names(self, folder: str) -> Iterator[str]:
        path = self._path(folder).rstrip("/")
        try:
            entries = self._ask(folder, self.fs.ls, path, True)
        except FileNotFoundError:
            self._check_bucket()
            return
        names = (PurePosixPath(entry["name"]) for entry in entries)
        yield from (name.name for name in names if name != PurePosixPath(path))

    def find(self, recursive: bool) -> dict[str, dict[str, Any]]:
        """Return the store's metadata of each file below the folder, or only directly in it, by
        relative name. "" is the folder itself, if it is a file.

        Raises:
            StoreError: the bucket doesn't exist or can't be listed.
        """
        try:
            listed = self._ask(
                "", self.fs.find if recursive else self.fs.ls, self._root, detail=True
            )
        except FileNotFoundError:
            listed = []
        entries = listed.values() if isinstance(listed, dict) else listed
        if not entries:
            self._check_bucket()
        files = [
            entry
            for entry in entries
            if entry.get("type") != "directory" and not entry["name"].endswith("/")
        ]
        return {
            self.fs._strip_protocol(entry["name"])[len(self._root) + 1 :]: entry for entry in files
        }

    def size(self, name: str) -> int:
        return int(self.describe(name)["size"])

    def read(self, name: str) -> bytes:
        with self._missing(name):
            return bytes(self._ask(name, self.fs.cat_file, self._path(name)))

    def open_file(self, name: str) -> BinaryIO:
        return io.BufferedReader(_RemoteFile(self, name, self.size(name)), BLOCK_BYTES)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file.

        Raises:
            StoreError: the file can't be read.
        """
        with self._missing(name):
            return bytes(self._ask(name, self.fs.cat_file, self._path(name), start=start, end=stop))

    def ask_each(self, ask: Callable[[T], R], items: Iterable[T]) -> Sequence[R]:
        with ThreadPoolExecutor(MAX_REQUESTS, "requests") as pool:
            answers = [pool.submit(ask, item) for item in items]
            try:
                return [answer.result() for answer in answers]
            except BaseException as error:
                pool.shutdown(wait=False, cancel_futures=True)
                if not isinstance(error, Exception):  # such as Ctrl-C
                    self.stop_waiting()
                raise

    def local_copy(self, name: str) -> Path:
        before = self.describe(name)
        digest = hashlib.sha256(f"{self.url}/{name}\n{sorted(before.items())}".encode()).hexdigest()
        return self.cache.fetch(
            digest, int(before["size"]), functools.partial(self._download, name, before)
        )

    def download(self, name: str, path: Path) -> None:
        """Download a file to a local path.

        Raises:
            StoreError: the file can't be read, or changes during the download.
        """
        self._download(name, self.describe(name), path)

    def _download(self, name: str, before: dict[str, Any], path: Path) -> None:
        path.touch()  # the disk's own errors come from here, not from the driver
        with self._missing(name):
            self._ask(name, self._get, name, path, int(before["size"]))
        if self._info(name) != before:
            raise StoreError(f"{self.url}/{name} changed while it was read. Open the dataset again")

    def _get(self, name: str, path: Path, size: int) -> None:
        self.fs.get_file(self._path(name), str(path))
        if path.stat().st_size != size:
            raise ConnectionError(f"{path.stat().st_size} of {size} bytes arrived")

    # ------------------------------------------------------------ writing

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        try:
            with _temporary_file() as (file, path):
                yield file
                file.flush()
                self._put_new(name, functools.partial(_put_file, path))
        except OSError as error:
            reason = (
                f"{error.strerror or error} in {tempfile.gettempdir()}, where files are stored"
                " before their upload (TMPDIR sets another folder)"
            )
            raise StoreError(
                f"{self.url}/{name} can't be written: {reason}; nothing that was there before is"
                " lost"
            ) from error

    def replace(self, name: str, content: bytes) -> None:
        with self._missing(name):
            self._ask(name, self._put, name, functools.partial(_put_bytes, content), False)

    def remove(self, name: str) -> None:
        self._claims.pop(name, None)
        with suppress(FileNotFoundError):
            self._ask(name, self.fs.rm_file, self._path(name))

    def discard_if_empty(self) -> None:
        """Do nothing: object stores have no folders."""

    def stop_waiting(self) -> None:
        self._outage.stop_waiting()

    def _put_new(self, name: str, send: Send) -> bool:
        """Write a file if it doesn't exist; True on success."""
        try:
            with self._missing(name):
                self._ask(name, self._put, name, send, True)
        except FileExistsError:
            return False
        except StoreError:
            if not self.exists(name):  # some servers don't say which condition failed
                raise
            return False
        return True

    def _put(self, name: str, send: Send, new: bool) -> None:
        """Write a file; with `new`, only if it doesn't exist. This is one request if the driver
        supports it.
        """
        path = self._path(name)
        if self._has_create:
            send(self.fs, path, mode="create" if new else "overwrite")
            return
        aside = self._path(part_name(name))
        for folder in (aside, path):
            self.fs.makedirs(folder.rpartition("/")[0], exist_ok=True)
        send(self.fs, aside)
        if new and self.fs.exists(path):
            self.fs.rm_file(aside)
            raise FileExistsError(path)
        self.fs.mv(aside, path)

    # ------------------------------------------------------------ claims

    def claim(self, name: str, content: str) -> bool:
        # A request whose answer was lost is sent again and finds our own claim.
        ours = (
            self._put_new(name, functools.partial(_put_bytes, content.encode()))
            or self._content(name) == content.encode()
        )
        if ours:
            self._claims[name] = content
        return ours

    def _content(self, name: str) -> bytes | None:
        try:
            return self.read(name)
        except StoreError:
            return None

    def remove_dead_claim(self, name: str) -> None:
        # One that comes late may remove the new owner's, and then both work.
        self.remove(name)

    def touch(self, name: str) -> None:
        content = self._claims.get(name)
        if content is not None:
            with suppress(Exception):  # it is touched again soon
                self._put(name, functools.partial(_put_bytes, content.encode()), False)

    def age_seconds(self, name: str) -> float:
        """Return for how long this process has seen the file unchanged; the clocks count only if
        they prove more.
        """
        info = self._info(name)
        if info is None:
            return 0.0
        state, now = repr(sorted(info.items())), time.monotonic()
        if self._claims_seen.get(name, ("", 0.0))[0] != state:
            self._claims_seen[name] = state, now
        age = now - self._claims_seen[name][1]
        with suppress(NotImplementedError, FileNotFoundError):
            written: datetime = self._ask(name, self.fs.modified, self._path(name))
            by_clock = datetime.now(UTC) - written.replace(tzinfo=written.tzinfo or UTC)
            age = max(age, by_clock.total_seconds() - CLOCK_SKEW_SECONDS)
        return age

    # ------------------------------------------------------------ inside

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._outage.wait_for(f"{self.url}/{name}", function, *args, **kwargs)

    def _info(self, name: str) -> dict[str, Any] | None:
        """Return the store's metadata of a file, such as "size"; None if it doesn't exist."""
        try:
            return dict(self._ask(name, self.fs.info, self._path(name)))
        except FileNotFoundError:
            return None

    def describe(self, name: str) -> dict[str, Any]:
        """Return the store's metadata of a file, such as "size".

        Raises:
            StoreError: the file doesn't exist, or the store can't be reached.
        """
        with self._missing(name):
            info = self._info(name)
            if info is None:
                raise FileNotFoundError(name)
            return info

    @contextmanager
    def _missing(self, name: str) -> Iterator[None]:
        """Turn the error that a file or its parent doesn't exist into a `StoreError`."""
        try:
            yield
        except FileNotFoundError as error:
            self._check_bucket()
            raise StoreError(f"{self.url}/{name}: no such file") from error

    def _check_bucket(self) -> None:
        """Check that the bucket exists, if the store has buckets."""
        bucket = self._root.partition("/")[0]
        if self._found_bucket or self.fs.root_marker or "://" in self._root:
            return
        try:
            self._ask("", self.fs.info, bucket)
        except FileNotFoundError as error:
            if self._ask(
                "", self.fs.exists, bucket
            ):  # s3fs 2025.3 to 2025.9 have no info on an empty bucket
                return
            raise StoreError(
                f"{self.url}: no bucket {bucket!r}. Create it first, or fix the URL"
            ) from error
        except StoreError:
            return  # permissions may cover only a part of a bucket
        self._found_bucket = True


class _RemoteFile(io.RawIOBase):
    """A file at a URL opened for reading; each read is one request."""

    def __init__(self, folder: UrlFolder, name: str, size: int) -> None:
        self._folder, self._name, self._size, self._place = folder, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        )
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        stop = min(self._place + len(buffer), self._size)
        if stop <= self._place:
            return 0
        content = self._folder.read_range(self._name, self._place, stop)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


@contextmanager
def _temporary_file() -> Iterator[tuple[BinaryIO, str]]:
    """Open a file to write before it is uploaded, and return its path for the driver."""
    if sys.platform == "linux":  # without a name that a killed process could leave behind
        with tempfile.TemporaryFile(prefix="latentkit-") as file:
            yield file, f"/proc/self/fd/{file.fileno()}"
    else:
        with (
            tempfile.TemporaryDirectory(prefix="latentkit-") as folder,
            open(Path(folder) / "upload", "w+b") as file,
        ):
            yield file, file.name


def _put_file(source: str, driver: Any, path: str, **mode: str) -> None:
    driver.put_file(source, path, **mode)


def _put_bytes(content: bytes, driver: Any, path: str, **mode: str) -> None:
    driver.pipe_file(path, content, **mode)

"""Write an export in parts, in a hidden folder beside the final one, so that a stopped export can
be resumed.

The folder `.OUT.export` holds settings.json (what is exported, and how), records/ (a JSON file per
finished part), files/ (the folder that becomes OUT), closing (the file beside it) and lock.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from latentkit.contracts import Export, ItemExporter
from latentkit.errors import InterruptedRunError, LatentkitError, PluginError, StoreError
from latentkit.exporting.items import Items
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.progress import Progress

ITEMS_PER_PART = 1024

SETTINGS, CLOSING = "settings.json", "closing"

FULL_BYTES = 1 << 16
"""Free bytes below which a disk counts as full: file systems keep the last blocks."""


def closing_path(exporter: ItemExporter, folder: Path) -> Path:
    """Return the path of the trainer's configuration, a file beside the export."""
    return folder.with_name(folder.name + getattr(exporter, "closing_suffix", ".txt"))


@dataclass(frozen=True)
class PartWriter:
    """Writes an export.

    Args:
        exporter: what writes items.
        items, export: the exporter's input.
        to: the exporter's name.
        show_progress: whether a line says how much is done.
    """

    exporter: ItemExporter
    items: Items
    export: Export
    to: str
    show_progress: bool = True

    @property
    def work(self) -> Path:
        """The hidden folder in which everything is written first."""
        return self.export.folder.with_name(f".{self.export.folder.name}.export")

    @property
    def files(self) -> Path:
        """The folder that becomes the export."""
        return self.work / "files"

    @cached_property
    def parts(self) -> Sequence[range]:
        """Item numbers of each part."""
        size, count = getattr(self.exporter, "items_per_part", ITEMS_PER_PART), len(self.items)
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def run(self, settings: Mapping[str, Any]) -> str:
        """Write all items, then move them to the export's folder, with the closing lines beside it.

        Args:
            settings: every setting that affects the files, JSON-like. A stopped export with the
                same settings is resumed; with others, it starts over.

        Returns:
            The closing lines and the path of their file; empty where there are none.

        Raises:
            StoreError: a file can't be written, or another process writes this export.
            PluginError: the exporter wrote nothing.
        """
        go_on = f"run the same command again to go on, or delete {self.work} to give up"
        try:
            with _locked(self.work), self._remove_unfinished(), _disk_errors(self.work):
                _prepare_folder(self.work, settings)
                self.write_parts()
                return self._finish()
        except OSError as error:
            raise StoreError(
                f"{self.export.folder} can't be written: {error.strerror or error}; {go_on}"
            ) from error
        except InterruptedRunError as error:
            raise InterruptedRunError(f"{error}; {go_on}", error.exit_code) from None

    def write_parts(self) -> None:
        """Write the parts that have no records yet."""
        numbers = range(len(self.parts))
        left = [number for number in numbers if not self._record_path(number).exists()]
        before = len(self.items) - sum(len(self.parts[number]) for number in left)
        with Progress(len(self.items), "items", self.show_progress, before) as progress:
            pool = ThreadPoolExecutor(share_of_cores(), "export")
            try:
                waiting = [pool.submit(self.write_part, number) for number in left]
                for done in as_completed(waiting):
                    progress.update(done.result())
            finally:
                pool.shutdown(cancel_futures=True)

    def write_part(self, number: int) -> int:
        """Write one part and its records; returns its number of items."""
        part = self.parts[number]
        items = self.items.read(part.start, part.stop)
        records = self.exporter.write(items, self.files, self.export)
        _write_whole(self._record_path(number), json.dumps(list(records)))
        return len(part)

    def records(self) -> Iterator[Any]:
        """Yield the records of all items, in order."""
        for number in range(len(self.parts)):
            yield from json.loads(self._record_path(number).read_text(encoding="utf-8"))

    def _record_path(self, number: int) -> Path:
        return self.work / "records" / f"{number:08d}.json"

    def _finish(self) -> str:
        """Move the files to the export's folder; return the closing lines and their path."""
        folder = self.export.folder
        closing = self.exporter.finish(self.records(), self.files, self.export).rstrip()
        if not any(self.files.iterdir()):
            raise PluginError(f"exporter {self.to!r} wrote nothing into its folder")
        if closing:  # before OUT exists, as the disk may have no room for it
            _write_whole(self.work / CLOSING, closing + "\n")
        if folder.exists():
            folder.rmdir()  # it is empty: others were refused before
        self.files.rename(folder)  # fails if another process has made the folder meanwhile
        if not closing:
            return ""
        beside = closing_path(self.exporter, folder)
        os.replace(self.work / CLOSING, beside)
        return f"{closing}\n(also in {beside})"

    @contextlib.contextmanager
    def _remove_unfinished(self) -> Iterator[None]:
        """Remove unfinished files at the end, unless a stop or a disk error left them to resume."""
        is_kept = False
        try:
            yield
        except (OSError, InterruptedRunError, KeyboardInterrupt):
            is_kept = not self.export.folder.exists()
            raise
        finally:
            if not is_kept:
                shutil.rmtree(self.work / "records", ignore_errors=True)
                shutil.rmtree(self.files, ignore_errors=True)
                for name in (SETTINGS, CLOSING):
                    (self.work / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(work: Path) -> Iterator[None]:
    """Raise an OSError where a library, such as safetensors or torch.save, reports a full or
    failing disk by an exception of its own.
    """
    try:
        yield
    except LatentkitError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # others, such as numpy's, have a text and no number
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number:
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        if shutil.disk_usage(work).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _prepare_folder(work: Path, settings: Mapping[str, Any]) -> None:
    """Make the work folder; keep the files of a stopped export only if its settings are the same.
    """
    settings_file = work / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not settings_file.exists() or settings_file.read_text(encoding="utf-8") != text:
        for name in ("records", "files"):
            shutil.rmtree(work / name, ignore_errors=True)
        _write_whole(settings_file, text)
    for name in ("records", "files"):
        (work / name).mkdir(exist_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Write a file so that it is complete or not there."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Make the folder and keep other processes out of it; remove it at the end if it is empty."""
    work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(work / "lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StoreError(
            f"{work}: another process writes this export; wait for it, or export to another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()  # first, as Windows can't remove an open file
        if [file.name for file in work.iterdir()] in ([], ["lock"]):
            with contextlib.suppress(OSError):
                (work / "lock").unlink(missing_ok=True)
                work.rmdir()

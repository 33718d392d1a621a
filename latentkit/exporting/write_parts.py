"""Writing an export in parts, in a hidden folder beside the final one, so that a stopped export
goes on where it stood.

The folder `.OUT.export` holds settings.json (what is exported, and how), records/ (a JSON file per
finished part), files/ (what becomes OUT), closing (what becomes the file beside it) and lock.
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
"""Free on a disk that counts as full: blocks are left that no file is given."""


def closing_path(exporter: ItemExporter, folder: Path) -> Path:
    """The file beside the export for the trainer's configuration."""
    return folder.with_name(folder.name + getattr(exporter, "closing_suffix", ".txt"))


@dataclass(frozen=True)
class PartWriter:
    """Writes an export.

    Args:
        exporter: what writes items.
        items, export: what it is given.
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
        """The hidden folder in which all is written."""
        return self.export.folder.with_name(f".{self.export.folder.name}.export")

    @property
    def files(self) -> Path:
        """The folder that becomes the export."""
        return self.work / "files"

    @cached_property
    def parts(self) -> Sequence[range]:
        """Numbers of the items of each part."""
        size, count = getattr(self.exporter, "items_per_part", ITEMS_PER_PART), len(self.items)
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def run(self, settings: Mapping[str, Any]) -> str:
        """Write all items; then the export's folder appears, and the closing lines beside it.

        Args:
            settings: all that decides what is written, as JSON has it; an export that was stopped
                goes on where they are the same, and starts over where not.

        Returns:
            The closing lines, and where they lie; empty where there are none.

        Raises:
            StoreError: a file can't be written, or another process writes this export.
            PluginError: nothing was written.
        """
        go_on = f"run the same command again to go on, or delete {self.work} to give up"
        try:
            with _locked(self.work), self._cleaned(), _disk_errors(self.work):
                _begin(self.work, settings)
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
        left = [number for number in range(len(self.parts)) if not self._record(number).exists()]
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
        _write_whole(self._record(number), json.dumps(list(records)))
        return len(part)

    def records(self) -> Iterator[Any]:
        """What was recorded of all items, in their order."""
        for number in range(len(self.parts)):
            yield from json.loads(self._record(number).read_text(encoding="utf-8"))

    def _record(self, number: int) -> Path:
        return self.work / "records" / f"{number:08d}.json"

    def _finish(self) -> str:
        folder = self.export.folder
        closing = self.exporter.finish(self.records(), self.files, self.export).rstrip()
        if not any(self.files.iterdir()):
            raise PluginError(f"exporter {self.to!r} wrote nothing into its folder")
        if closing:  # while there may be no room for it, nothing is there that looks whole
            _write_whole(self.work / CLOSING, closing + "\n")
        if folder.exists():
            folder.rmdir()  # an empty one, or it was refused
        self.files.rename(folder)  # which fails where something else is by now
        if not closing:
            return ""
        beside = closing_path(self.exporter, folder)
        os.replace(self.work / CLOSING, beside)
        return f"{closing}\n(also in {beside})"

    @contextlib.contextmanager
    def _cleaned(self) -> Iterator[None]:
        """Remove what was written, but where a stop or the disk is why it isn't whole."""
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
    """Raise an OSError for what a library says in its own way of a disk that is full or fails, as
    safetensors and torch.save do.
    """
    try:
        yield
    except (OSError, LatentkitError):
        raise
    except Exception as error:
        said = re.search(r"\(os error (\d+)\)", str(error))
        if said:
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error
        if shutil.disk_usage(work).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise


def _begin(work: Path, settings: Mapping[str, Any]) -> None:
    """Keep what a stopped export of the same settings left, and nothing else."""
    said = work / SETTINGS
    text = json.dumps(settings, indent=1, sort_keys=True)
    if not said.exists() or said.read_text(encoding="utf-8") != text:
        for name in ("records", "files"):
            shutil.rmtree(work / name, ignore_errors=True)
        _write_whole(said, text)
    for name in ("records", "files"):
        (work / name).mkdir(exist_ok=True)


def _write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
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
        lock.release()  # before its file goes: Windows removes no file that is open
        if [file.name for file in work.iterdir()] in ([], ["lock"]):
            with contextlib.suppress(OSError):
                (work / "lock").unlink(missing_ok=True)
                work.rmdir()

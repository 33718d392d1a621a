"""Who is at work on what: claims/<name>.json, made by exclusive creation and kept alive by touching.

Claims only save work. Two processes at work on one unit is waste, never damage: the first commit wins.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from latentkit.store.folder import ASIDE, Folder, host

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 60.0
"""A claim from another host that nobody touched for so long is dead; on this host the process itself is looked up."""

PART = re.compile(r"~(?P<host>[^~]*)~(?P<pid>\d+)~[0-9a-f]+\.part")
"""Name of a file in the making, as `Folder` gives it."""


class Claims:
    """This process's claims on one folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.path = folder.path / ASIDE
        self._held: set[str] = set()
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Whether the claim is ours now; a dead process's is taken over."""
        with self.folder.explained(f"{ASIDE}/{name}.json"):
            return self._take(name, self._file(name))

    def _take(self, name: str, path: Path) -> bool:
        self.path.mkdir(parents=True, exist_ok=True)
        if path.exists() and self._is_dead(path):
            # Of several finders one renames; one that comes late may rename the new owner's, and then both work.
            stale = path.with_suffix(f".{os.getpid()}.stale")
            with suppress(FileNotFoundError):
                os.rename(path, stale)
                stale.unlink()
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(_identity(os.getpid()), file)
        except FileExistsError:
            return False
        with self._lock:
            self._held.add(name)
        return True

    def drop(self, name: str) -> None:
        """Give a claim up; nothing happens when it isn't held."""
        with self._lock:
            if name not in self._held:
                return
            self._held.discard(name)
        self._file(name).unlink(missing_ok=True)

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Keep the held claims alive in a thread; drop all of them on leaving."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), name="claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            for name in list(self._held):
                self.drop(name)

    def holders(self) -> list[str]:
        """Host and process of every living claim that isn't ours, for messages."""
        holders = set()
        for path in self.path.glob("*.json"):
            if path.stem not in self._held and not self._is_dead(path):
                owner = _read(path)
                holders.add(f"process {owner.get('pid')} on {owner.get('host')}")
        return sorted(holders)

    def is_free(self, name: str) -> bool:
        """Whether nobody else is at work on it."""
        path = self._file(name)
        return name in self._held or not path.exists() or self._is_dead(path)

    def sweep(self) -> None:
        """Remove what dead processes of this host left in the claims folder."""
        for path in self.path.glob("*.json"):
            if self._is_dead(path):
                path.unlink(missing_ok=True)
        for path in self.path.glob("*.stale"):
            path.unlink(missing_ok=True)
        for path in self.path.glob("*.part"):
            match = PART.search(path.name)
            if match and match["host"] == host() and not psutil.pid_exists(int(match["pid"])):
                path.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with self._lock:
                held = list(self._held)
            for name in held:
                with suppress(OSError):
                    os.utime(self._file(name))

    def _is_dead(self, path: Path) -> bool:
        owner = _read(path)
        if owner.get("host") == host():
            return owner != _identity(int(owner.get("pid", 0)))
        try:
            return time.time() - path.stat().st_mtime > DEAD_AFTER_SECONDS
        except FileNotFoundError:
            return False


def _identity(pid: int) -> dict[str, object]:
    """Host, process and its starting time, which tells a process from a later one with its number."""
    try:
        return {"host": host(), "pid": pid, "started": psutil.Process(pid).create_time()}
    except psutil.NoSuchProcess:
        return {}


def _read(path: Path) -> dict[str, int | str | float]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        # Just created and not yet written, or gone: its age decides.
        return {}

"""Who is working on what: claims/<name>.json, made by exclusive creation and kept alive by
touching.

Claims only save work. Two processes working on one unit is waste, never damage: the first commit
wins.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from latentkit.errors import StoreError
from latentkit.store.folder import ASIDE, Folder, host

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 60.0
"""A claim from another host that nobody touched for so long is dead; on this host the process
itself is looked up.
"""

PART = re.compile(r"~(?P<host>[^~]*)~(?P<pid>\d{1,9})~[0-9a-f]+\.part")
"""Name of a file in the making, as `Folder` gives it."""

_living_tokens: set[str] = set()
"""Of the claims that this process holds: one of ours that isn't here was left behind, when a folder
couldn't be reached.
"""


class Claims:
    """This process's claims on one folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._held: dict[str, str] = {}
        """Name to token."""
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Whether the claim is ours now; a dead process's is taken over."""
        file = _file(name)
        token = secrets.token_hex(8)
        _living_tokens.add(token)  # before anybody can read it
        ours = False
        try:
            ours = self._create(file, json.dumps({**_identity(os.getpid()), "token": token}))
        finally:
            if not ours:
                _living_tokens.discard(token)
        if ours:
            with self._lock:
                self._held[name] = token
        return ours

    def _create(self, file: str, content: str) -> bool:
        if self.folder.claim(file, content):
            return True
        if not self._is_dead(file):
            return False
        self.folder.take_over(file)
        return self.folder.claim(file, content)

    def drop(self, name: str) -> None:
        """Give a claim up; nothing happens when it isn't held."""
        with self._lock:
            token = self._held.pop(name, None)
        if token is None:
            return
        try:
            self.folder.remove(_file(name))
        finally:
            _living_tokens.discard(token)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Keep the held claims alive in a thread; drop all of them on leaving."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(stop,), name="claims", daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self.folder.stop_waiting()
            raise
        finally:
            stop.set()
            thread.join()
            for name in list(self._held):
                with suppress(StoreError):  # what stays behind is recognized as dead
                    self.drop(name)

    def holders(self) -> list[str]:
        """Host and process of every living claim that isn't ours, for messages."""
        holders = set()
        for name in self._names():
            if name not in self._held and not self._is_dead(_file(name)):
                owner = self._read(_file(name))
                holders.add(f"process {owner.get('pid')} on {owner.get('host')}")
        return sorted(holders)

    def owner(self, name: str) -> str:
        """Process, host and start of who holds a claim, for messages."""
        found = self._read(_file(name))
        if not isinstance(started := found.get("started"), float):
            return "another process"
        since = datetime.fromtimestamp(started).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        return f"process {found.get('pid')} on {found.get('host')}, begun at {since}"

    def is_free(self, name: str) -> bool:
        """Whether nobody else is working on it."""
        file = _file(name)
        return name in self._held or not self.folder.exists(file) or self._is_dead(file)

    def find_free(self, names: Iterable[str]) -> set[str]:
        """Return those of `names` that nobody else is working on."""
        taken = {
            name
            for name in self._names()
            if name not in self._held and not self._is_dead(_file(name))
        }
        return set(names) - taken

    def sweep(self) -> None:
        """Remove what dead processes left in the claims folder."""
        for file in self.left_over():
            self.folder.remove(file)

    def left_over(self) -> list[str]:
        """Claims of dead processes, and files in the making of those of this host."""
        import psutil  # here, so that reading does without it

        def is_dead(name: str) -> bool:
            match = PART.search(name)
            if match:
                return match["host"] == host() and not psutil.pid_exists(int(match["pid"]))
            is_claim = name.endswith(".json")
            return name.endswith(".stale") or (is_claim and self._is_dead(f"{ASIDE}/{name}"))

        return [f"{ASIDE}/{name}" for name in self.folder.list(ASIDE) if is_dead(name)]

    def _names(self) -> list[str]:
        return [
            name.removesuffix(".json") for name in self.folder.list(ASIDE) if name.endswith(".json")
        ]

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            for name in list(self._held):
                with self._lock:  # a claim that is being dropped isn't written again
                    if name in self._held:
                        self.folder.touch(_file(name))

    def _is_dead(self, file: str) -> bool:
        owner = self._read(file)
        if owner.get("host") == host():
            there = _identity(owner.get("pid"))
            is_there = bool(there) and there.items() <= owner.items()
            return not is_there or (
                owner["pid"] == os.getpid() and owner.get("token") not in _living_tokens
            )
        return self.folder.age_seconds(file) > DEAD_AFTER_SECONDS

    def _read(self, file: str) -> dict[str, Any]:
        """Return what a claim says; {} where it is new, damaged or gone: then its age decides."""
        try:
            content = json.loads(self.folder.read(file))
        except (StoreError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


@contextmanager
def sole_writer(folder: Folder, name: str) -> Iterator[None]:
    """Hold a claim that only one process may have; a dead one's is taken over.

    Raises:
        StoreError: another process has it, says which; or the folder can't be written.
    """
    claims = Claims(folder)
    if not claims.take(name):
        who = claims.owner(name)
        raise StoreError(
            f"{folder}: another run writes here ({who}); "
            "wait for it, stop it, or give another output.path"
        )
    try:
        with claims.heartbeat():
            yield
    finally:
        folder.discard_if_empty()


def _file(name: str) -> str:
    return f"{ASIDE}/{name}.json"


def _identity(pid: object) -> dict[str, Any]:
    """Host, process and its starting time; empty when there is none.

    The time tells a process from a later one with its number. A process that has ended and that
    nobody waited for (a zombie) is none. Some systems don't say when another user's process
    started; it then counts as the one meant.
    """
    if not isinstance(pid, int) or not 0 < pid < 1 << 31:
        return {}
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return {}
        return {"host": host(), "pid": pid, "started": process.create_time()}
    except psutil.NoSuchProcess:
        return {}
    except psutil.AccessDenied:
        return {"host": host(), "pid": pid}

"""Work claims: which process works on which unit. A claim is claims/<name>.json, created
exclusively and kept alive by touching it.

Claims only save work. Two processes working on one unit is a waste but never damages anything: the
first commit wins.
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
"""A claim from another host that wasn't touched for this long is dead. On this host the process
itself is checked.
"""

PART = re.compile(r"~(?P<host>[^~]*)~(?P<pid>\d{1,9})~[0-9a-f]+\.part")
"""Name of an unfinished file, as `Folder` makes it."""

_own_tokens: set[str] = set()
"""Tokens of the claims that this process holds. Another claim with this process's number was left
behind when a folder couldn't be reached.
"""


class Claims:
    """This process's claims in one folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._held: dict[str, str] = {}
        """Name to token."""
        self._lock = threading.Lock()

    def take(self, name: str) -> bool:
        """Try to take the claim; True on success. A dead process's claim is taken over."""
        file = _file(name)
        token = secrets.token_hex(8)
        _own_tokens.add(token)  # before anybody can read it
        ours = False
        try:
            ours = self._create(file, json.dumps({**_identity(os.getpid()), "token": token}))
        finally:
            if not ours:
                _own_tokens.discard(token)
        if ours:
            with self._lock:
                self._held[name] = token
        return ours

    def _create(self, file: str, content: str) -> bool:
        """Create the claim file, after removing a dead process's; True on success."""
        if self.folder.claim(file, content):
            return True
        if not self._is_dead(file):
            return False
        self.folder.remove_dead_claim(file)
        return self.folder.claim(file, content)

    def drop(self, name: str) -> None:
        """Give up a claim. Nothing happens if this process doesn't hold it."""
        with self._lock:
            token = self._held.pop(name, None)
        if token is None:
            return
        try:
            self.folder.remove(_file(name))
        finally:
            _own_tokens.discard(token)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Keep the held claims alive in a thread, and drop all of them on leaving. After an
        exception, don't wait for a folder that can't be reached.
        """
        stop = threading.Event()
        thread = threading.Thread(
            target=self._touch_claims, args=(stop,), name="claims", daemon=True
        )
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
                with suppress(StoreError):  # a claim that is left behind is recognized as dead
                    self.drop(name)

    def holders(self) -> list[str]:
        """Return host and process of every living claim of other processes, for messages."""
        holders = set()
        for name in self._names():
            if name not in self._held and not self._is_dead(_file(name)):
                owner = self._read(_file(name))
                holders.add(f"process {owner.get('pid')} on {owner.get('host')}")
        return sorted(holders)

    def owner(self, name: str) -> str:
        """Return process, host and start time of the holder of a claim, for messages."""
        found = self._read(_file(name))
        if not isinstance(started := found.get("started"), float):
            return "another process"
        since = datetime.fromtimestamp(started).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
        return f"process {found.get('pid')} on {found.get('host')}, begun at {since}"

    def is_free(self, name: str) -> bool:
        """Return whether no other process works on it."""
        file = _file(name)
        return name in self._held or not self.folder.exists(file) or self._is_dead(file)

    def find_free(self, names: Iterable[str]) -> set[str]:
        """Return those of `names` that no other process works on, with one listing of the folder
        and one check per claim.
        """
        taken = {
            name
            for name in self._names()
            if name not in self._held and not self._is_dead(_file(name))
        }
        return set(names) - taken

    def sweep(self) -> None:
        """Remove dead processes' claims, and unfinished files of dead processes on this host."""
        for file in self.left_over():
            self.folder.remove(file)

    def left_over(self) -> list[str]:
        """Return claims of dead processes, and unfinished files of dead processes on this host."""
        import psutil  # imported here, so that reading doesn't need it

        def is_dead(name: str) -> bool:
            match = PART.search(name)
            if match:
                return match["host"] == host() and not psutil.pid_exists(int(match["pid"]))
            is_claim = name.endswith(".json")
            return name.endswith(".stale") or (is_claim and self._is_dead(f"{ASIDE}/{name}"))

        return [f"{ASIDE}/{name}" for name in self.folder.list(ASIDE) if is_dead(name)]

    def _names(self) -> list[str]:
        """Return the names of all claims."""
        return [
            name.removesuffix(".json") for name in self.folder.list(ASIDE) if name.endswith(".json")
        ]

    def _touch_claims(self, stop: threading.Event) -> None:
        """Touch the held claims until stopped."""
        while not stop.wait(HEARTBEAT_SECONDS):
            for name in list(self._held):
                with self._lock:  # a claim that is being dropped isn't written again
                    if name in self._held:
                        self.folder.touch(_file(name))

    def _is_dead(self, file: str) -> bool:
        """Return whether the process that made the claim no longer runs."""
        owner = self._read(file)
        if owner.get("host") == host():
            there = _identity(owner.get("pid"))
            is_there = bool(there) and there.items() <= owner.items()
            return not is_there or (
                owner["pid"] == os.getpid() and owner.get("token") not in _own_tokens
            )
        return self.folder.age_seconds(file) > DEAD_AFTER_SECONDS

    def _read(self, file: str) -> dict[str, Any]:
        """Return the content of a claim; nothing if it isn't written yet, is damaged, or is gone.
        Then its age decides.
        """
        try:
            content = json.loads(self.folder.read(file))
        except (StoreError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}


@contextmanager
def hold_exclusive_claim(folder: Folder, name: str) -> Iterator[None]:
    """Hold a claim that only one process may have. A dead process's claim is taken over.

    Raises:
        StoreError: another process has the claim (the message names it), or the folder can't be
            written.
    """
    claims = Claims(folder)
    if not claims.take(name):
        who = claims.owner(name)
        raise StoreError(
            f"{folder}: another run writes here ({who}); "
            "wait for it, stop it, or choose another output.path"
        )
    try:
        with claims.heartbeat():
            yield
    finally:
        folder.discard_if_empty()


def _file(name: str) -> str:
    """Return the file name of a claim."""
    return f"{ASIDE}/{name}.json"


def _identity(pid: object) -> dict[str, Any]:
    """Return host, process number and start time of a process; empty if it doesn't exist.

    The start time distinguishes a process from a later one with the same number. A process that has
    ended but wasn't waited for (a zombie) doesn't exist. Some systems don't tell when another
    user's process started; that process is then considered the right one.
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

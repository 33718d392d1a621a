"""Waiting for a store that can't be reached: requests are sent again with growing pauses, until an
outage has lasted too long.
"""

from __future__ import annotations

import errno
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from latentkit.errors import StoreError

P = ParamSpec("P")
T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
"""A pause is twice the last one, up to this."""

GIVE_UP_AFTER_SECONDS = 120.0
"""Counted from the first request that failed, whoever sent it; a new one that fails so long after
the last counts again.
"""

SAY_AFTER_SECONDS = 2.0
"""Shorter outages, such as being told to slow down, aren't worth a line."""

ANSWERS = (FileNotFoundError, FileExistsError, NotImplementedError, StoreError)
"""What a store that was reached may say to a request; for the one who asked."""

PASSING_NAME = re.compile("Timeout|Connect|HTTPClientError|Incomplete|Payload|ResponseParser")
PASSING_ERRNO = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE}
PASSING_ERRNO |= {errno.ENETUNREACH, errno.EHOSTUNREACH}
if sys.platform == "linux":
    PASSING_ERRNO.add(errno.EREMOTEIO)


class Outage:
    """What a folder's threads know together of the times in which it can't be reached."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._began: float | None = None
        self._last = 0.0
        self._has_said = False
        self._hurry = threading.Event()

    def stop_waiting(self) -> None:
        """From now on a request that fails is not sent again."""
        self._hurry.set()

    def wait_for(self, where: str, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `request` gives, sent again while the store can't be reached.

        Raises:
            FileNotFoundError, FileExistsError, NotImplementedError: as the driver answers.
            StoreError: it failed for good.
        """
        pause, is_first = FIRST_PAUSE_SECONDS, True
        while True:
            try:
                result = request(*args, **kwargs)
            except ANSWERS:
                self._end()
                raise
            except Exception as error:  # a driver raises what it likes
                if not _is_passing(error):
                    raise explained(error, where) from error
                if self._has_lasted(is_first):
                    problem = (
                        f"{where} can't be reached ({_words(error)}); run again when it can,"
                        " nothing is lost"
                    )
                    raise StoreError(problem) from error
            else:
                self._end()
                return result
            self._hurry.wait(pause)
            pause, is_first = min(2 * pause, LONGEST_PAUSE_SECONDS), False

    def _has_lasted(self, is_first: bool) -> bool:
        """Return whether the outage has lasted too long; `is_first`: the first request."""
        now = time.monotonic()
        with self._lock:
            if self._began is None or (is_first and now - self._last > GIVE_UP_AFTER_SECONDS):
                self._began = now
            self._last = now
            lasted = now - self._began
            if lasted >= SAY_AFTER_SECONDS and not self._has_said:
                self._has_said = True
                print(f"{self._url} can't be reached; waiting", file=sys.stderr, flush=True)
        return lasted > GIVE_UP_AFTER_SECONDS or self._hurry.is_set()

    def _end(self) -> None:
        with self._lock:
            if self._has_said:
                print(f"{self._url} is there again", file=sys.stderr, flush=True)
            self._began, self._has_said = None, False


def explained(error: Exception, where: str) -> StoreError:
    """What went wrong, for people."""
    if "Credential" in type(error).__name__:
        advice = (
            "log in, as by AWS_PROFILE or AWS_ACCESS_KEY_ID; for a public bucket set"
            " FSSPEC_S3_ANON=true"
        )
        return StoreError(f"{where}: no credentials that can be used ({_words(error)}); {advice}")
    if isinstance(error, PermissionError):
        return StoreError(
            f"{where}: no permission ({_words(error)}); check the credentials, and what they allow"
        )
    return StoreError(f"{where}: {_words(error)}")


def _is_passing(error: Exception) -> bool:
    """Whether it may be otherwise in a moment.

    Drivers share no classes for this, but the words in their names, and error numbers.
    """
    if isinstance(error, PermissionError):
        return False
    names = " ".join(parent.__name__ for parent in type(error).__mro__)
    return bool(PASSING_NAME.search(names)) or (
        isinstance(error, OSError) and error.errno in PASSING_ERRNO
    )


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

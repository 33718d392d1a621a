"""Waits for a store that can't be reached: requests are sent again with growing pauses, until an
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
"""Each pause is twice the last one, up to this."""

GIVE_UP_AFTER_SECONDS = 120.0
"""Counted from the first failed request of any thread. A new request that fails so long after the
last starts the count again.
"""

SAY_AFTER_SECONDS = 2.0
"""Shorter outages, such as a request to slow down, aren't reported."""

DEFINITE_ERRORS = (FileNotFoundError, FileExistsError, NotImplementedError, StoreError)
"""Errors from a store that was reached. They are passed to the caller."""

PASSING_NAME = re.compile("Timeout|Connect|HTTPClientError|Incomplete|Payload|ResponseParser")
PASSING_ERRNO = {errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE}
PASSING_ERRNO |= {errno.ENETUNREACH, errno.EHOSTUNREACH}
if sys.platform == "linux":
    PASSING_ERRNO.add(errno.EREMOTEIO)


class Outage:
    """The threads' shared state of a folder that can't be reached for some time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = threading.Lock()
        self._began: float | None = None
        self._last = 0.0
        self._has_said = False
        self._must_not_wait = threading.Event()

    def stop_waiting(self) -> None:
        """Don't send failed requests again from now on."""
        self._must_not_wait.set()

    def wait_for(self, where: str, request: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what `request` returns. It is sent again while the store can't be reached.

        Args:
            where: name of the file or folder, for messages.

        Raises:
            FileNotFoundError, FileExistsError, NotImplementedError: the driver's answer.
            StoreError: the request failed for good.
        """
        pause, is_first = FIRST_PAUSE_SECONDS, True
        while True:
            try:
                result = request(*args, **kwargs)
            except DEFINITE_ERRORS:
                self._end()
                raise
            except Exception as error:  # a driver may raise anything
                if not _is_temporary(error):
                    raise explain_store_error(error, where) from error
                if self._has_lasted(is_first):
                    problem = (
                        f"{where} can't be reached ({_describe_error(error)}). Run again when it"
                        " can; nothing is lost"
                    )
                    raise StoreError(problem) from error
            else:
                self._end()
                return result
            self._must_not_wait.wait(pause)
            pause, is_first = min(2 * pause, LONGEST_PAUSE_SECONDS), False

    def _has_lasted(self, is_first: bool) -> bool:
        """Record a failed request, and return whether the outage has lasted too long.

        `is_first`: whether the request was sent for the first time.
        """
        now = time.monotonic()
        with self._lock:
            if self._began is None or (is_first and now - self._last > GIVE_UP_AFTER_SECONDS):
                self._began = now
            self._last = now
            lasted = now - self._began
            if lasted >= SAY_AFTER_SECONDS and not self._has_said:
                self._has_said = True
                print(f"{self._url} can't be reached; waiting", file=sys.stderr, flush=True)
        return lasted > GIVE_UP_AFTER_SECONDS or self._must_not_wait.is_set()

    def _end(self) -> None:
        """Record that the store was reached."""
        with self._lock:
            if self._has_said:
                print(f"{self._url} can be reached again", file=sys.stderr, flush=True)
            self._began, self._has_said = None, False


def explain_store_error(error: Exception, where: str) -> StoreError:
    """Return an error that says what went wrong and what to do."""
    if "Credential" in type(error).__name__:
        advice = (
            "log in, for example with AWS_PROFILE or AWS_ACCESS_KEY_ID; for a public bucket set"
            " FSSPEC_S3_ANON=true"
        )
        return StoreError(f"{where}: no usable credentials ({_describe_error(error)}); {advice}")
    if isinstance(error, PermissionError):
        return StoreError(
            f"{where}: no permission ({_describe_error(error)}); check the credentials and their"
            " permissions"
        )
    return StoreError(f"{where}: {_describe_error(error)}")


def _is_temporary(error: Exception) -> bool:
    """Return whether the request may succeed later.

    Drivers share no error classes for this, only words in class names, and error numbers.
    """
    if isinstance(error, PermissionError):
        return False
    names = " ".join(parent.__name__ for parent in type(error).__mro__)
    return bool(PASSING_NAME.search(names)) or (
        isinstance(error, OSError) and error.errno in PASSING_ERRNO
    )


def _describe_error(error: Exception) -> str:
    """Return an error's class and text."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

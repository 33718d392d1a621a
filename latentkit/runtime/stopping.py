"""Signals that end a run, held back while a step is taken, so that its state can be saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from latentkit.errors import InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PROMISE = b"stopping after this step, whose state is saved first; Ctrl-C again stops at once\n"


class Stop:
    """Whether a run was asked to stop, and what ends it then.

    `number` is of the first signal that came while signals were held back, else 0. `is_agreed` is set by the
    loop: all processes stop after the same step. `is_urgent`: a second Ctrl-C came, and nothing is to be saved.
    """

    def __init__(self) -> None:
        self.number = 0
        self.is_urgent = False
        self.is_agreed = False
        self._is_holding = False
        self._previous: dict[int, Any] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take signals; outside `holding` they do at once what they did before. Other threads than the main one get none."""
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
            for number, handler in self._previous.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, self._receive)
        try:
            yield
        finally:
            self._hand_back()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Remember a signal rather than act on it; a second Ctrl-C acts at once, unless it may be a launcher's."""
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False

    def end(self) -> None:
        """Do what the signal does when nobody holds it back.

        Raises:
            InterruptedRunError, KeyboardInterrupt: that ends the run; by default, SIGTERM ends the process.
        """
        number = self.number or signal.SIGTERM  # which another process got
        previous = self._previous.get(number)
        self._hand_back()
        if callable(previous):
            previous(number, None)
        elif previous == signal.SIG_DFL:
            signal.raise_signal(number)
        raise InterruptedRunError("stopped" if number == signal.SIGINT else "terminated", 128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_first, self.number = not self.number, self.number or number
        if not self._is_holding:
            self.end()
        elif is_first and os.environ.get("RANK", "0") == "0":
            os.write(2, PROMISE)  # `print` fails where the signal came in the middle of another one
        elif not is_first and number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            self.is_urgent = True
            self.end()

    def _hand_back(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
        self._previous = {}

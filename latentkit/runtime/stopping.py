"""Signals end a run by an exception; a training delays them until the current step is done, so that
the state can be saved first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from latentkit.errors import InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PROMISE = b"stopping after this step, when its state is saved; Ctrl-C again stops at once\n"

_other_hook: Any = sys.__unraisablehook__


def end_run_on(*numbers: signal.Signals) -> None:
    """Let each of these signals raise InterruptedRunError in the main thread, which calls this."""
    global _other_hook
    for number in numbers:
        signal.signal(number, _interrupt)
    if sys.unraisablehook is not _interrupt_again:
        _other_hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raise InterruptedRunError, and ignore later signals, as launchers send several."""
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise InterruptedRunError("stopped" if number == signal.SIGINT else "terminated", 128 + number)


def _interrupt_again(unraisable: Any) -> None:
    """Send a signal again whose exception Python ignored, as it does in a `__del__` method.

    Later, because an exception from here would be ignored as well.
    """
    if not isinstance(unraisable.exc_value, InterruptedRunError):
        _other_hook(unraisable)
        return
    number = signal.Signals(unraisable.exc_value.exit_code - 128)
    signal.signal(number, _interrupt)
    threading.Timer(0.01, _send_to_main_thread, [number]).start()


def _send_to_main_thread(number: signal.Signals) -> None:
    thread = threading.main_thread().ident
    if sys.platform == "win32" or thread is None:
        signal.raise_signal(number)
    else:
        signal.pthread_kill(thread, number)


class Stop:
    """Whether a run was asked to stop, and by which signal.

    `number` is the first signal that arrived while signals were delayed, else 0. `is_agreed` is set
    by the loop: all processes stop after the same step. `is_urgent` means that a second Ctrl-C
    arrived, and nothing is saved.
    """

    def __init__(self) -> None:
        self.number = 0
        self.is_urgent = False
        self.is_agreed = False
        self._is_holding = False
        self._previous: dict[int, Any] = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Receive signals. Outside `holding` they act as before.

        Only the main thread receives signals.
        """
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in SIGNALS}
            for number, handler in self._previous.items():
                if handler not in (signal.SIG_IGN, None):
                    signal.signal(number, self._handle_signal)
        try:
            yield
        finally:
            self._restore_handlers()

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Remember a signal instead of acting on it.

        A second Ctrl-C acts at once, unless a launcher may have sent it.
        """
        self._is_holding = True
        try:
            yield
        finally:
            self._is_holding = False

    def end(self) -> None:
        """Act on the signal as if it weren't delayed.

        Raises:
            InterruptedRunError, KeyboardInterrupt: ends the run. By default SIGTERM ends the
                process.
        """
        number = self.number or signal.SIGTERM  # another process got it
        previous = self._previous.get(number)
        self._restore_handlers()
        if callable(previous):
            previous(number, None)
        elif previous == signal.SIG_DFL:
            signal.raise_signal(number)
        raise InterruptedRunError(
            "stopped" if number == signal.SIGINT else "terminated", 128 + number
        )

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        """Record a signal, or act on it if signals aren't delayed or it is the second Ctrl-C."""
        is_first, self.number = not self.number, self.number or number
        if not self._is_holding:
            self.end()
        elif is_first and os.environ.get("RANK", "0") == "0":
            os.write(2, PROMISE)  # `print` fails if the signal interrupts another one
        elif not is_first and number == signal.SIGINT and "LOCAL_RANK" not in os.environ:
            self.is_urgent = True
            self.end()

    def _restore_handlers(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle_signal:
                signal.signal(number, handler)
        self._previous = {}

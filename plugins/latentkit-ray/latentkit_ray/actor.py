"""The cluster's side of a worker: it asks for units one at a time, and reports results."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from enum import Enum
from queue import SimpleQueue

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.errors import DeviceError
from latentkit.kit import choose_device


class Signal(Enum):
    """A report of an actor in addition to results."""

    WANTS = "the worker is ready for another unit"
    ENDED = "the worker was told that no units are left, and has finished"


Event = UnitResult | Signal


class UnitActor:
    """Runs one worker in a thread; `next_event` and `stop` are called from other threads.

    The worker prepares the start of a unit while the end of the last one is encoded, so it asks for
    the next unit early.

    Args:
        make_worker: takes a device and returns a worker, as for an executor.
        device: device in this process, as for `choose_device`.
    """

    def __init__(self, make_worker: Callable[[str], Worker], device: str) -> None:
        self._make_worker, self._device = make_worker, choose_device(device)
        if device == "auto" and self._device == "cpu":
            raise DeviceError(
                "Ray gave this worker a GPU, but torch finds none there; install another torch, or"
                " set gpus_per_worker: 0"
            )
        self._given: SimpleQueue[Unit | None] = SimpleQueue()
        self._events: SimpleQueue[Event | BaseException] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def next_event(self, *given: Unit | None) -> Event:
        """Wait for the next event and return it.

        Args:
            given: the answer to `Signal.WANTS`: a unit, or None if none is left. Without an
                argument the worker is started if it isn't running.

        Raises:
            Exception: what the worker raised.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="worker", daemon=True)
            self._thread.start()
        for unit in given:
            self._given.put(unit)
        event = self._events.get()
        if isinstance(event, BaseException):
            raise event
        if event is Signal.ENDED:
            self._thread.join()
            self._thread = None
        return event

    def stop(self) -> None:
        """Interrupt the worker, and return when it has dropped its unfinished units and its
        claims.
        """
        if self._thread is None or self._thread.ident is None:
            return
        # Like a signal in a main thread. It arrives between two Python instructions, after the
        # current batch.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
        )
        self._given.put(None)
        self._thread.join()

    def _work(self) -> None:
        """Run the worker, and report its results and its end or error."""
        try:
            for result in self._make_worker(self._device)(iter(self._ask, None)):
                self._events.put(result)
            self._events.put(Signal.ENDED)
        except BaseException as error:  # noqa: BLE001 (plugin boundary)
            self._events.put(error)

    def _ask(self) -> Unit | None:
        """Ask for the next unit."""
        self._events.put(Signal.WANTS)
        return self._given.get()

"""The half of a worker that lives on the cluster: it asks for units one by one, and reports what
becomes of them.
"""

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
    """What an actor says besides results."""

    WANTS = "the worker is ready for another unit"
    ENDED = "the worker was told that there is no more, and has done what it had"


Event = UnitResult | Signal


class UnitActor:
    """One worker in a thread; `next_event` and `stop` are called from others.

    The worker prepares the head of a unit while the tail of the last one is encoded, so it asks for
    the next one early.

    Args:
        make_worker: as an executor gets it.
        device: as `choose_device` takes it, in this process.
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
        """The next thing that happens; waits for it.

        Args:
            given: the answer to `Signal.WANTS`, a unit, or None when there is no more. Nothing
                starts the worker where none is running.

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
        """Break the worker off wherever it is; returns when it has dropped its units in flight and
        its claims.
        """
        if self._thread is None or self._thread.ident is None:
            return
        # What a signal does to a main thread. It arrives between two steps of Python: after the
        # batch that is being encoded.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(self._thread.ident), ctypes.py_object(SystemExit)
        )
        self._given.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            for result in self._make_worker(self._device)(iter(self._ask, None)):
                self._events.put(result)
            self._events.put(Signal.ENDED)
        except BaseException as error:  # noqa: BLE001 (plugin boundary)
            self._events.put(error)

    def _ask(self) -> Unit | None:
        self._events.put(Signal.WANTS)
        return self._given.get()

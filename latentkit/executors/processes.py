"""Worker processes on this machine: each asks for a unit when it has room, and sends results back,
all through its own pipes.

    worker: "wants"            ->   a unit, or None when there is no more
    worker: "result", result   ->
    worker: "error", exception ->

If a worker is killed, only its unfinished units are lost: no process waits for it, and the others
find these units free when they list the folder again. If the parent is killed, a worker finds its
pipe closed, commits the unit that it is encoding, and ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import IO, Any, Self

from latentkit.contracts import Unit, UnitResult, Worker
from latentkit.errors import InterruptedRunError, PluginError
from latentkit.runtime import workers
from latentkit.runtime.stopping import end_run_on

PATIENCE_SECONDS = 60.0
"""How long a stopped worker may take to commit or drop what it is encoding."""

ENDED = None


class WorkerProcesses:
    """A worker process for each device; leaving the context stops those still running.

    Args:
        devices: devices, one for each process.
        make_worker: makes the worker of a device; picklable.
        all_units: handed out one by one, to these processes and to whoever iterates over `units`.

    Raises:
        PluginError: `make_worker` can't be pickled.
    """

    def __init__(
        self,
        devices: Sequence[str],
        make_worker: Callable[[str], Worker],
        all_units: Sequence[Unit],
    ) -> None:
        try:
            pickled = pickle.dumps(make_worker)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            text = (
                "the source, modality or encoder can't be sent to the processes of other devices:"
                f" {error}"
            )
            raise PluginError(
                f"{text}; encode on one device (--device), or make it picklable"
            ) from error
        self._left, self._lock = iter(all_units), threading.Lock()
        self._events: SimpleQueue[UnitResult | BaseException | None] = SimpleQueue()
        self._num_working, self._is_closing = len(devices), False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        environment = {
            **os.environ,
            "LOCAL_WORLD_SIZE": str(len(devices) + 1),
            workers.VARIABLE: "1",
        }
        for device in devices:
            process = subprocess.Popen(
                [sys.executable, "-m", "latentkit.executors.processes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            self._processes.append(process)
            hello = pickle.dumps(sys.path) + pickle.dumps(device) + pickled
            self._threads.append(
                threading.Thread(target=self._serve, args=(process, device, hello), daemon=True)
            )
            self._threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._left, self._is_closing = iter(()), True
        for process in self._processes:
            if self._num_working and process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in self._threads:  # which close the pipes
            thread.join()

    def units(self) -> Iterator[Unit]:
        """Iterate over units that no process has been given."""
        return iter(self._next_unit, None)

    def results(self) -> Iterator[UnitResult]:
        """Yield the results that the processes have sent so far.

        Raises:
            BaseException: what a worker raised.
        """
        with contextlib.suppress(Empty):
            while True:
                yield from self._result_of(self._events.get_nowait())

    def last_results(self) -> Iterator[UnitResult]:
        """Yield all results that are still to come; end when every process has ended.

        Raises:
            BaseException: what a worker raised.
        """
        while self._num_working:
            with contextlib.suppress(
                Empty
            ):  # in turns, since Windows delivers no Ctrl-C to a thread that waits for good
                yield from self._result_of(self._events.get(timeout=1.0))

    def _result_of(self, event: UnitResult | BaseException | None) -> Iterator[UnitResult]:
        """Yield a result, raise a worker's error, or count a worker that has ended."""
        if isinstance(event, BaseException):
            raise event
        if event is ENDED:
            self._num_working -= 1
        else:
            yield event

    def _next_unit(self) -> Unit | None:
        with self._lock:
            return next(self._left, None)

    # ------------------------------------------------------------ a thread for each process

    def _serve(self, process: subprocess.Popen[bytes], device: str, hello: bytes) -> None:
        """Answer a process until it ends."""
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(hello)
            process.stdin.flush()
            while True:
                kind, value = pickle.load(process.stdout)
                if kind == "wants":
                    pickle.dump(self._next_unit(), process.stdin)
                    process.stdin.flush()
                else:  # "result", "error"
                    self._events.put(value)
        except (EOFError, OSError, pickle.UnpicklingError):
            if (code := process.wait()) and not self._is_closing:
                text = (
                    f"the process for {device} ended with exit code {code}; the other processes"
                    " encode its unfinished units"
                )
                print(f"warning: {text}", file=sys.stderr, flush=True)
        finally:
            self._events.put(ENDED)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()


# ---------------------------------------------------------------- the worker process


def main() -> None:
    """Encode units for the process that started this one, until it has no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops us
    end_run_on(signal.SIGTERM)
    answers, events = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what plugins print must not come between events
    with contextlib.suppress(InterruptedRunError, BrokenPipeError):
        _work(answers, events)


def _work(answers: IO[bytes], events: IO[bytes]) -> None:
    """Receive the job, then encode units until there are none, and send each result."""
    lock = threading.Lock()

    def send(kind: str, value: Any = None) -> None:
        message = pickle.dumps((kind, value))
        with lock:
            events.write(message)
            events.flush()

    def next_unit() -> Unit | None:
        try:
            send("wants")
            unit: Unit | None = pickle.load(answers)
        except (EOFError, BrokenPipeError):
            return None  # the parent is gone
        return unit

    device = "?"
    try:
        sys.path[:] = pickle.load(answers)
        device = pickle.load(answers)
        make_worker = pickle.load(answers)
        for result in make_worker(device)(iter(next_unit, None)):
            send("result", result)
    except Exception as error:  # noqa: BLE001 (it crosses to the parent, which raises it)
        error.add_note(f"in the process for {device}:\n{traceback.format_exc()}")
        send("error", _sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return the error, or its text in a RuntimeError if the error can't be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (an exception's own way of pickling may raise anything)
        return RuntimeError("\n".join([str(error), *getattr(error, "__notes__", [])]))
    return error


if __name__ == "__main__":
    main()

"""Prepares samples ahead of the encoder: loaded, hashed and turned into tensors, in order and
within a memory limit.

A thread claims units, reads shards and hands small groups of samples to a pool of threads (or
processes, if a modality asks for them). The samples prepared ahead are limited in number and in
bytes, but one batch is always allowed.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar, cast

from latentkit.preparing.processes import explain_dead_process

T = TypeVar("T")
Token = TypeVar("Token")
Result = TypeVar("Result")


class LookAhead(Generic[Token, Result]):
    """Prepares the samples of all units ahead of the caller, who iterates over them in order. Use
    it as a context manager.

    Args:
        preparer: prepares samples in the pool.
        units: (token, samples) of each unit; the token, such as the unit itself, is returned with
            the results. Iterated in a separate thread.
        batch_size: rows per batch; batches start anew with each unit.
        pool: memory for the batches.
    """

    def __init__(
        self,
        started: Iterable[tuple[Token, Future[Result] | None]],
        pool: Executor,
        limit: Callable[[], int],
        take: Callable[[Result], Result] = lambda result: result,
    ) -> None:
        self._started, self._workers, self._max_ahead, self._take = started, pool, limit, take
        self._ahead: deque[tuple[Token, Future[Result] | None]] = deque()
        self._num_ahead = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        self._feeder = ThreadPoolExecutor(1, "feed")
        self._feeding = self._feeder.submit(self._feed)
        self._feeding.add_done_callback(lambda _: self._notify())
        return self

    def __exit__(self, *_: object) -> None:
        """Finish the samples being prepared and drop those that wait."""
        self._is_closed = True
        self._notify()
        self._feeder.shutdown(wait=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Token, Result | None]]:
        """Yield prepared samples with their unit's token, group by group; None at the end of a
        unit.

        Raises:
            LatentkitError: an error in a thread or process.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._feeding.done())
                if not self._ahead:
                    break
                token, future = self._ahead.popleft()
            yield token, None if future is None else self._result_of(future)
        with explain_dead_process():
            self._feeding.result()

    def _result_of(self, future: Future[Result]) -> Result:
        """Return the results of one group and count its bytes as no longer ahead."""
        with explain_dead_process():
            result = self._take(future.result())
        with self._changed:
            self._num_ahead -= 1
            self._changed.notify_all()
        return result

    def _feed(self) -> None:
        """Hand groups of samples to the pool until all units are done."""
        started = iter(self._started)
        while self._wait_for_room() and (work := next(started, None)) is not None:
            with self._changed:
                self._ahead.append(work)
                self._num_ahead += work[1] is not None
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Whether there is room; False when nobody wants any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or self._num_ahead < max(1, self._max_ahead())
            )
        return not self._is_closed

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()


def prepare_in_order(
    items: Iterable[T], prepare: Callable[[T], Result], num_ahead: int, num_threads: int
) -> Generator[Result]:
    """Give what `prepare` returns for each item, in their order; close it to stop early.

    Args:
        items: asked for on a thread of its own; they may have no end.
        prepare: called in threads.
        num_ahead: most items that are prepared while the caller has one; at least 1.
        num_threads: that prepare them.

    Raises:
        Exception: what `prepare` raised, in the place of its item.
    """
    pool = ThreadPoolExecutor(num_threads, "prepare")
    started: Iterator[tuple[Any, Future[Result]]] = (
        (None, pool.submit(prepare, item)) for item in items
    )
    with LookAhead(started, pool, lambda: num_ahead) as ahead:
        for _, result in ahead:
            yield cast(Result, result)

"""Runs work in a pool ahead of the caller, who gets the results in order. The work that is ahead is
limited.
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
    """Iterates over the results of work that runs ahead in a pool, in order. Use it as a context
    manager.

    Args:
        started: (token, future) of each piece of work. Iterating over it starts the work, in a
            separate thread. The token, such as a unit, is returned with the result; a future of
            None returns None.
        pool: pool that does the work; it is shut down at the end.
        limit: returns how many pieces of work may be ahead of the caller; at least 1 is.
        take: called in the caller's thread with each result; what it returns is the result.
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
        """Finish the work that is running, and drop the work that waits."""
        self._is_closed = True
        self._notify()
        self._feeder.shutdown(wait=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Token, Result | None]]:
        """Yield each token with its result, in order.

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
        """Wait for a result and return it; it no longer counts as ahead."""
        with explain_dead_process():
            result = self._take(future.result())
        with self._changed:
            self._num_ahead -= 1
            self._changed.notify_all()
        return result

    def _feed(self) -> None:
        """Start work whenever less than the limit is ahead, until all is started."""
        started = iter(self._started)
        while self._wait_for_room() and (work := next(started, None)) is not None:
            with self._changed:
                self._ahead.append(work)
                self._num_ahead += work[1] is not None
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until less than the limit is ahead; False if the caller has stopped."""
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
    """Yield what `prepare` returns for each item, in order. Close the generator to stop early.

    Args:
        items: iterated in a separate thread; may be endless.
        prepare: called in several threads.
        num_ahead: most items that are prepared while the caller has one; at least 1.
        num_threads: number of threads that prepare.

    Raises:
        Exception: what `prepare` raised, when the caller reaches that item.
    """
    pool = ThreadPoolExecutor(num_threads, "prepare")
    started: Iterator[tuple[Any, Future[Result]]] = (
        (None, pool.submit(prepare, item)) for item in items
    )
    with LookAhead(started, pool, lambda: num_ahead) as ahead:
        for _, result in ahead:
            yield cast(Result, result)

"""Samples prepared ahead of whoever takes them, in order and within bounds: for encoding, training
and evaluating.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, Self, TypeVar, cast

from latentkit.preparing.processes import explained

T = TypeVar("T")
Token = TypeVar("Token")
Result = TypeVar("Result")


class LookAhead(Generic[Token, Result]):
    """Results in the order in which their work was started; to be used as a context.

    Args:
        started: work with a token that its result comes with, or a token alone. Asked for on a
            thread of its own, each time there is room; it may have no end.
        pool: of that work; closed with this.
        limit: most results that may be ahead of whoever iterates, asked each time; one always may.
        take: what becomes of each result before there is room for another.
    """

    def __init__(
        self,
        started: Iterable[tuple[Token, Future[Result] | None]],
        pool: Executor,
        limit: Callable[[], int],
        take: Callable[[Result], Result] = lambda result: result,
    ) -> None:
        self._started, self._workers, self._limit, self._take = started, pool, limit, take
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
        """Work in flight is finished, work that waits is dropped."""
        self._is_closed = True
        self._notify()
        self._feeder.shutdown(wait=True)
        self._workers.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Token, Result | None]]:
        """Tokens with their results; None where there was no work.

        Raises:
            LatentkitError: a process of the pool was killed.
            Exception: whatever went wrong in the work, in its place; in starting it, at the end.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._feeding.done())
                if not self._ahead:
                    break
                token, future = self._ahead.popleft()
            yield token, None if future is None else self._taken(future)
        with explained():
            self._feeding.result()

    def _taken(self, future: Future[Result]) -> Result:
        with explained():
            result = self._take(future.result())
        with self._changed:
            self._num_ahead -= 1
            self._changed.notify_all()
        return result

    def _feed(self) -> None:
        """Runs on the feeding thread."""
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
                lambda: self._is_closed or self._num_ahead < max(1, self._limit())
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

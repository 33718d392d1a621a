"""Prepares samples in threads, ahead of a caller who takes them one by one and in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")


def prepare_in_order(
    items: Iterable[T], prepare: Callable[[T], Result], num_ahead: int, num_threads: int
) -> Generator[Result]:
    """Yield what `prepare` returns for each item, in order. Close the generator to stop early.

    Args:
        items: taken in the caller's thread; may be endless.
        prepare: called in threads.
        num_ahead: most items that are prepared ahead while the caller works on one.
        num_threads: number of threads.

    Raises:
        Exception: what `prepare` raised, when its item's turn comes.
    """
    pool = ThreadPoolExecutor(num_threads, "prepare")
    ahead: deque[Future[Result]] = deque()
    try:
        for item in items:
            ahead.append(pool.submit(prepare, item))
            if len(ahead) > num_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)

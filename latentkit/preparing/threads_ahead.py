"""Samples prepared in threads, ahead of whoever takes them one by one and in order."""

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
    """Give what `prepare` returns for each item, in their order; close it to stop early.

    Args:
        items: asked for on the caller's thread; they may have no end.
        prepare: called in threads.
        num_ahead: most items that are prepared while the caller has one.

    Raises:
        Exception: what `prepare` raised, in the place of its item.
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

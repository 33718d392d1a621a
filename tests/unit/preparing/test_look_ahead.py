"""Items prepared in threads, ahead and in order."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from latentkit.preparing.look_ahead import prepare_in_order


def test_results_come_in_order_and_in_full_however_long_each_takes() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    assert list(prepare_in_order(range(10), slow_first, 3, 4)) == [n * n for n in range(10)]
    assert list(prepare_in_order(range(2), slow_first, 30, 4)) == [0, 1]


@pytest.mark.parametrize("num_ahead", [1, 2, 5])
def test_no_more_are_ahead_than_allowed(num_ahead: int) -> None:
    asked = itertools.count()
    are_asked = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for item in asked:
            are_asked.release()
            yield item

    results = prepare_in_order(items(), lambda item: item, num_ahead, 2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    for _ in range(4 + num_ahead):
        assert are_asked.acquire(timeout=60)
    assert not are_asked.acquire(timeout=0.1)
    results.close()
    assert next(asked) == 4 + num_ahead


def test_an_error_in_asking_for_items_comes_after_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("the shard is gone")

    results = prepare_in_order(items(), lambda item: item, 5, 2)
    assert next(results) == 1
    with pytest.raises(ValueError, match="the shard is gone"):
        next(results)


def test_an_error_comes_in_the_place_of_its_item() -> None:
    results = prepare_in_order([1, 0, 2], lambda item: 6 / item, 5, 2)
    assert next(results) == 6
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closed_early_it_starts_nothing_more_and_leaves_no_thread() -> None:
    started = []
    before = threading.active_count()
    results = prepare_in_order(range(1000), started.append, 50, 1)
    next(results)
    results.close()
    assert len(started) <= 51
    assert threading.active_count() == before

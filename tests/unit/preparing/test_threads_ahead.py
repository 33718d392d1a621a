"""Items prepared in threads, ahead and in order."""

from __future__ import annotations

import itertools
import threading
import time

import pytest

from latentkit.preparing.threads_ahead import prepare_in_order


def test_results_come_in_order_and_in_full_however_long_each_takes() -> None:
    def slow_first(item: int) -> int:
        time.sleep(0.05 if item == 0 else 0)
        return item * item

    assert list(prepare_in_order(range(10), slow_first, 3, 4)) == [n * n for n in range(10)]
    assert list(prepare_in_order(range(2), slow_first, 30, 4)) == [0, 1]


@pytest.mark.parametrize("num_ahead", [0, 1, 5])
def test_no_more_are_ahead_than_allowed(num_ahead: int) -> None:
    asked = itertools.count()
    results = prepare_in_order(asked, lambda item: item, num_ahead, 2)
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert next(asked) == 4 + num_ahead
    results.close()


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

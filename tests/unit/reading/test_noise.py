"""The reader's noise is standard normal, and a pure function of its seed and of the place of each
number.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from latentkit.reading.posterior import Noise


def drawn(*shape: int, seed: tuple[int, ...] = (3, 0, 1)) -> np.ndarray:
    out = np.empty(shape, np.float32)
    Noise(*seed).fill(out)
    return out


def test_numbers_are_standard_normal() -> None:
    numbers = np.sort(drawn(64, 4, 32, 32).ravel().astype(np.float64))
    expected = np.array(
        [0.5 * math.erfc(-x / math.sqrt(2)) for x in numbers[:: len(numbers) // 1000]]
    )
    actual = (np.arange(len(numbers))[:: len(numbers) // 1000] + 0.5) / len(numbers)
    assert np.abs(actual - expected).max() < 1.95 / math.sqrt(
        len(numbers)
    )  # Kolmogorov and Smirnov, at the level 0.001
    assert np.isfinite(numbers).all()
    assert 4.2 < np.abs(numbers).max() < 6.6


def test_numbers_do_not_depend_on_each_other() -> None:
    rows = drawn(512, 1000).astype(np.float64)
    for shift in (1, 2, 499, 500, 501):
        assert abs((rows[:, shift:] * rows[:, :-shift]).mean()) < 5 / math.sqrt(rows.size / 2)
        assert abs((rows[:, shift:] ** 2 * rows[:, :-shift] ** 2).mean() - 1) < 5 * 3 / math.sqrt(
            rows.size / 2
        )
    assert abs((rows[1:] * rows[:-1]).mean()) < 5 / math.sqrt(rows.size)


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_row_is_the_same_however_many_follow(size: int) -> None:
    many = drawn(9, size)
    assert np.array_equal(drawn(4, size), many[:4])
    in_two = np.empty((9, size), np.float32)
    noise = Noise(3, 0, 1)
    noise.fill(in_two[:5])
    noise.fill(in_two[5:])
    assert np.array_equal(in_two, many)


def test_seeds_differ_and_repeat() -> None:
    assert np.array_equal(drawn(3, 50), drawn(3, 50))
    seeds = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1 << 40), (0, 0, 1 << 41)]
    assert len({drawn(3, 50, seed=seed).tobytes() for seed in seeds}) == len(seeds)

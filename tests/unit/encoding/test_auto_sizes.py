"""What `batch_size: auto` tries: never more than the data has, never what doesn't fit, and little
beside the run that it decides.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latentkit.contracts import InputSpec, LatentLayout, Normalization, Prepared
from latentkit.encoding import auto_sizes
from latentkit.encoding.auto_sizes import Measured, choose_unit_size, measure_batches


class Recording:
    """Gives back a channel of its input, and keeps the sizes of its batches."""

    modality = "image"
    input = InputSpec(channels=3)
    layout = LatentLayout("latent", "deterministic", "CHW", 3, 1)
    normalization = Normalization(0.0, 1.0)

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        self.sizes.append(len(batch))
        return {"latent": batch}

    def fingerprint(self) -> dict[str, str]:
        return {}


@pytest.fixture
def find(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Measured, list[int]]]:
    """What is found, and the batches that were encoded, where a batch of n rows takes `seconds(n)`.
    """

    def find(
        num_rows: int | None, seconds: Callable[[int], float], batch_size: int | None = None
    ) -> tuple[Measured, list[int]]:
        encoder = Recording()

        is_end = itertools.cycle([False, True])

        def read_clock() -> float:
            return seconds(encoder.sizes[-1]) if next(is_end) else 0.0

        monkeypatch.setattr(auto_sizes, "time", SimpleNamespace(perf_counter=read_clock))
        row = Prepared("plain", "8x8", torch.zeros(3, 8, 8))
        return (
            measure_batches(encoder, row, "cpu", "moments", torch.float32, batch_size, num_rows),
            encoder.sizes,
        )

    return find


def latency(size: int) -> float:
    """Seconds of an accelerator that isn't full: a batch costs as much as a row, up to 64."""
    return 0.02 * max(1.0, size / 64)


def linear(size: int) -> float:
    """Seconds of a CPU, a little less per row in larger batches."""
    return 0.1 * size**0.99


@pytest.mark.parametrize("seconds", [latency, linear])
@pytest.mark.parametrize("num_rows", [1, 5, 39, 40, 100, 300, 1000, 20_000, 1_000_000])
def test_measuring_costs_a_twentieth_of_the_run_at_most(
    find: Callable[..., tuple[Measured, list[int]]], num_rows: int, seconds: Callable[[int], float]
) -> None:
    found, sizes = find(num_rows, seconds)
    run = seconds(found.batch_size) * num_rows / found.batch_size
    spent = sum(map(seconds, sizes))
    assert spent <= 0.05 * run
    assert max(sizes, default=1) <= num_rows


def test_a_long_run_finds_the_batch_that_fills_the_device(
    find: Callable[..., tuple[Measured, list[int]]],
) -> None:
    assert find(1_000_000, latency)[0] == Measured(64, 0.02 / 64, 3 * 8 * 8 * 4)
    assert find(None, latency)[0].batch_size == 64  # a stream


def test_a_given_batch_size_is_kept_and_measured_only_where_that_is_cheap(
    find: Callable[..., tuple[Measured, list[int]]],
) -> None:
    found, sizes = find(1_000_000, linear, 8)
    assert (found.batch_size, max(sizes)) == (8, 8)
    assert find(40, linear, 8) == (Measured(8, linear(1), 3 * 8 * 8 * 4), [1, 1])
    assert find(8, linear, 8) == (Measured(8, 0.0, 3 * 8 * 8 * 4), [])


def test_no_batch_is_tried_that_memory_has_no_room_for(
    find: Callable[..., tuple[Measured, list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter(
        [0, 1 << 30, 1 << 30, 2 << 30, 2 << 30, 4 << 30]
    )  # before and after batches of 1, 2, 4 rows: 1 GiB a row
    monkeypatch.setattr(auto_sizes, "peak_bytes", lambda: next(peaks))
    monkeypatch.setattr(auto_sizes, "available_bytes", lambda: 3 << 30)
    found, sizes = find(1_000_000, latency)
    assert (found.batch_size, max(sizes)) == (4, 4)


def test_units_of_what_was_not_measured_are_spread_over_processes() -> None:
    assert choose_unit_size(16, 1, Measured(1, 0.0, 100)) == 1
    assert choose_unit_size(19, 1, Measured(4, 0.0, 100)) == 4

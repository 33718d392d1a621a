"""The order and preparation of training batches."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentkit.contracts import Entry, Prepared, Sample
from latentkit.errors import SampleError, SourceError, TrainingError
from latentkit.training.batches import (
    Batch,
    BatchSettings,
    FreshViews,
    Order,
    Position,
    read_batches,
)


class Numbers:
    """Samples whose media is their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=f"sample-{index}", media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(f"sample-{index}") for index in range(self.count))


class NumberTensors:
    """Two views: the number, and minus the number; keys are kept.

    Numbers in `bad` can't be used.
    """

    metrics: Sequence[str] = ()

    def __init__(self, bad: Sequence[int] = (), sizes: Sequence[int] = (1,)) -> None:
        self.bad, self.sizes = bad, sizes
        self.keys: list[str] = []
        self.unreachable = 0
        self._lock = threading.Lock()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        number = int(sample.read())
        with self._lock:
            self.keys.append(sample.key)
            self.unreachable -= 1
            if self.unreachable >= 0:
                raise OSError("the disk is away")
        if number in self.bad:
            raise SampleError("an unlucky number")
        for sign in (1.0, -1.0):
            yield Prepared(
                f"{sign}", "", torch.full((self.sizes[number % len(self.sizes)],), sign * number)
            )

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


def take(
    count: int,
    source: Numbers,
    modality: NumberTensors,
    settings: BatchSettings,
    start: Position | None = None,
) -> list[Batch]:
    stream = read_batches(
        source, FreshViews([modality], settings.seed), settings, start or Position()
    )
    try:
        return list(islice(stream, count))
    finally:
        stream.close()


def flat(batches: list[Batch]) -> list[list[float]]:
    return [batch.inputs.flatten().tolist() for batch in batches]


def indices(order: Order, epoch: int) -> list[int]:
    """What one process reads in an epoch."""
    first, last = order.start_of(epoch).number, order.start_of(epoch + 1).number
    assert {order.place(number).epoch for number in range(first, last)} <= {epoch}
    return [order.place(number).index for number in range(first, last)]


def test_an_epoch_has_every_sample_once_and_the_next_another_order() -> None:
    order = Order(12, BatchSettings(batch_size=5, seed=0))
    first, second = (indices(order, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(12))
    assert first != second
    assert (
        first
        == indices(Order(12, BatchSettings(3, seed=0)), 0)
        != indices(Order(12, BatchSettings(5, seed=1)), 0)
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_and_none_is_ahead(world_size: int) -> None:
    orders = [Order(29, BatchSettings(4, 0, rank, world_size)) for rank in range(world_size)]
    for epoch in (0, 5):
        shares = [indices(order, epoch) for order in orders]
        assert sorted(index for share in shares for index in share) == list(range(29))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert {order.place(10**6).block for order in orders} == {10**6 // 4}


def test_the_modality_is_told_the_epoch_in_the_key() -> None:
    modality = NumberTensors()
    take(4, Numbers(4), modality, BatchSettings(2, 0))
    assert {"sample-0#0", "sample-0#1", "sample-3#0", "sample-3#1"} <= set(modality.keys)


def test_each_epoch_draws_views_anew_and_both_come_up() -> None:
    batches = take(20, Numbers(4), NumberTensors(), BatchSettings(4, 0))
    drawn = [{int(abs(value)): value for value in batch} for batch in flat(batches)]
    for number in (1, 2, 3):
        assert {row[number] for row in drawn} == {float(number), float(-number)}


@pytest.mark.parametrize("done", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3)])
def test_reading_from_a_position_gives_what_would_have_come(
    done: int, sizes: tuple[int, ...]
) -> None:
    settings = BatchSettings(2, seed=9)
    through = take(10, Numbers(7), NumberTensors(sizes=sizes), settings)
    resumed = take(
        10 - done, Numbers(7), NumberTensors(sizes=sizes), settings, through[done - 1].after
    )
    assert flat(resumed) == flat(through[done:])
    assert [batch.after for batch in resumed] == [batch.after for batch in through[done:]]


def test_each_batch_is_full_and_of_one_shape_and_every_sample_comes_equally_often() -> None:
    batches = take(60, Numbers(15), NumberTensors(sizes=(1, 1, 2, 3, 3)), BatchSettings(4, 0))
    assert {batch.inputs.shape for batch in batches} == {(4, 1), (4, 2), (4, 3)}
    counts = Counter(int(abs(value)) for batch in batches for value in batch.inputs[:, 0].tolist())
    assert counts.keys() == set(range(15))
    assert set(counts.values()) <= {15, 16, 17}  # 240 samples; up to three of each shape wait


def test_few_samples_wait_and_they_are_in_the_position() -> None:
    for batch in take(40, Numbers(15), NumberTensors(sizes=(1, 2, 3)), BatchSettings(4, 0)):
        assert len(batch.after.waiting) <= 2 * 3
        assert list(batch.after.waiting) == sorted(set(batch.after.waiting))
        assert all(number < batch.after.number for number in batch.after.waiting)


def test_a_bad_sample_is_left_out_of_its_batch_and_recorded() -> None:
    bad: dict[str, str] = {}
    stream = read_batches(
        Numbers(6), FreshViews([NumberTensors(bad=[4])], 0), BatchSettings(3, 0), Position(), bad
    )
    batches = list(islice(stream, 5))
    stream.close()
    assert Counter(abs(value) for batch in flat(batches) for value in batch) == dict.fromkeys(
        [0, 1, 2, 3, 5], 3
    )
    assert bad == {"sample-4": "an unlucky number"}


@pytest.mark.parametrize(
    ("bad", "settings", "message"),
    [
        (
            range(6),
            BatchSettings(3, 0),
            r"none of the 6 samples can be used: an unlucky number \(6 times\), such as sample-\d",
        ),
        (
            [4],
            BatchSettings(3, 0, on_bad_sample="fail"),
            "sample 'sample-4' can't be used: an unlucky number; remove it, or set on_bad_sample: skip",
        ),
    ],
)
def test_too_many_bad_samples_end_the_run(
    bad: Sequence[int], settings: BatchSettings, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        take(20, Numbers(6), NumberTensors(bad), settings)


def test_eleven_bad_samples_are_too_many_only_above_the_share_allowed() -> None:
    modality = NumberTensors(bad=range(11))
    assert len(take(50, Numbers(220), modality, BatchSettings(4, 0, max_bad=0.05))) == 50
    with pytest.raises(SourceError, match=r"11 of 219 samples .* more than max_bad: 0\.05"):
        take(60, Numbers(219), modality, BatchSettings(4, 0, max_bad=0.05))


def test_fewer_samples_than_a_batch_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"3 samples, fewer than one batch \(batch_size 4"):
        take(1, Numbers(3), NumberTensors(), BatchSettings(4, 0))
    with pytest.raises(TrainingError, match="batch_size 2 on 2 processes"):
        take(1, Numbers(3), NumberTensors(), BatchSettings(2, 0, world_size=2))


def test_samples_of_any_shape_are_refused() -> None:
    with pytest.raises(
        TrainingError,
        match=(
            r"more than 256 shapes, such as 1 and 2; prepare them to one size or to a few buckets"
        ),
    ):
        take(100, Numbers(600), NumberTensors(sizes=range(1, 601)), BatchSettings(4, 0))


@pytest.mark.parametrize("rank", [0, 1])
def test_several_sizes_are_drawn_by_batch_for_all_processes(rank: int) -> None:
    modalities = [NumberTensors(sizes=[size]) for size in (1, 2)]
    settings = BatchSettings(3, 0, rank, 2)
    stream = read_batches(Numbers(17), FreshViews(modalities, 4), settings, Position())
    sizes = [batch.inputs.shape[1] for batch in islice(stream, 30)]
    stream.close()
    assert set(sizes) == {1, 2}
    other = read_batches(
        Numbers(23), FreshViews(modalities, 4), BatchSettings(3, 1, 1 - rank, 2), Position()
    )
    assert sizes == [batch.inputs.shape[1] for batch in islice(other, 30)]
    other.close()


def test_media_out_of_reach_for_a_moment_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentkit.preparing.media_retry.PAUSES_SECONDS", (0.01, 0.01))
    modality = NumberTensors()
    modality.unreachable = 2
    assert len(take(2, Numbers(4), modality, BatchSettings(2, 0))) == 2
    modality.unreachable = 10**6
    with pytest.raises(SourceError, match="can't be reached: the disk is away"):
        take(2, Numbers(4), modality, BatchSettings(2, 0))

"""The samples that metrics see: all of them, in order, batched by bucket; bad ones counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from latentkit.contracts import Entry, Prepared, Sample, Shard
from latentkit.errors import RecipeError, SampleError, SourceError
from latentkit.evaluation.batches import batch_rows, read_rows
from latentkit.runtime.bad_samples import BadSamplePolicy

SKIP = BadSamplePolicy()


class Numbers:
    """A source of texts that are numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"key {index}", str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(f"key {index}") for index in range(self.count))


class NumberStream:
    """The same numbers, three to a shard."""

    def __init__(self, count: int) -> None:
        self.numbers = Numbers(count)

    def shards(self) -> list[Shard]:
        return [Shard(str(start)) for start in range(0, len(self.numbers), 3)]

    def read(self, shard: Shard) -> Iterator[Sample]:
        start = int(shard.name)
        return (self.numbers[index] for index in range(start, min(start + 3, len(self.numbers))))


class Bars:
    """A number to as many ones, modulo 4, in two views; the numbers of `bad` can't be used."""

    metrics: Sequence[str] = ()

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        number = int(sample.read())
        if number in self.bad:
            raise SampleError(f"{number} is bad")
        for view in ("plain", "hflip"):
            yield Prepared(view, str(number % 4), torch.ones(number % 4))

    def render(self, tensors: Any, path: Path) -> None:
        raise AssertionError("nothing is rendered")


@pytest.mark.parametrize("source", [Numbers(50), NumberStream(50)], ids=["by position", "stream"])
def test_rows_come_in_the_sources_order_with_every_view(source: Numbers | NumberStream) -> None:
    rows = list(read_rows(source, Bars(7), SKIP))
    assert [row.position for row in rows] == list(range(99))
    expected = [
        (f"key {number}", view)
        for number in range(50)
        for view in ("plain", "hflip")
        if number != 7
    ]
    assert [(row.key, row.view) for row in rows if not row.reason] == expected
    assert [(row.key, row.reason) for row in rows if row.reason] == [("key 7", "7 is bad")]


def test_batches_are_of_one_bucket_full_but_for_the_last_and_hold_every_row_once() -> None:
    rows = list(read_rows(Numbers(21), Bars(), SKIP))
    batches = list(batch_rows(rows, 4))
    assert all(len({row.bucket for row in batch}) == 1 for batch in batches)
    assert sorted(row.position for batch in batches for row in batch) == list(range(42))
    assert sum(len(batch) < 4 for batch in batches) <= 4
    assert list(batch_rows([], 4)) == []


def test_more_bad_samples_than_allowed_end_it_with_an_example() -> None:
    bad = Bars(*range(0, 40, 3))
    with pytest.raises(
        SourceError,
        match=(
            r"11 of 40 samples can't be used so far: 0 is bad; 3 is bad; 6 is bad, more than"
            r" max_bad: 0.05 allows, such as key 0, key 3, key 6\. Repair the source, or"
        ),
    ):
        list(read_rows(Numbers(40), bad, SKIP))
    with pytest.raises(
        SourceError, match=r"14 of 40 samples can't be used: .*, more than max_bad: 0.05 allows"
    ):
        list(read_rows(NumberStream(40), bad, SKIP))
    assert (
        sum(bool(row.reason) for row in read_rows(Numbers(40), bad, BadSamplePolicy(max_bad=0.5))) == 14
    )


def test_no_usable_sample_ends_it() -> None:
    with pytest.raises(
        SourceError, match="none of the 2 samples can be used: 0 is bad; 1 is bad, such as key 0, key 1"
    ):
        list(read_rows(Numbers(2), Bars(0, 1), SKIP))


def test_media_out_of_reach_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentkit.preparing.media_retry.PAUSES_SECONDS", (0.0,))
    failures = [OSError("away"), OSError("away")]

    class Away(Numbers):
        def __getitem__(self, index: int) -> Sample:
            if index == 1 and failures:
                raise failures.pop()
            return super().__getitem__(index)

    with pytest.raises(SourceError, match="sample 1 can't be reached: away"):
        list(read_rows(Away(3), Bars(), SKIP))
    failures[:] = [OSError("away")]
    assert len(list(read_rows(Away(3), Bars(), SKIP))) == 6


def test_a_sample_of_several_tensors_is_refused() -> None:
    class Masked(Bars):
        def prepare(self, sample: Sample) -> Iterator[Prepared]:
            yield Prepared("plain", "1", {"values": torch.ones(1), "mask": torch.ones(1)})

    with pytest.raises(
        RecipeError, match="'key 0': evaluation needs modalities that return one tensor"
    ):
        list(read_rows(Numbers(1), Masked(), SKIP))

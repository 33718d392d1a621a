"""Which epoch `batches()` reads: the next, however the loop over epochs is written, and the same on
every rank.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

import latentkit as lk

Pass = list[tuple[str, float]]
"""Keys and sums of latents, in order."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, random_dataset: Callable[..., Path]) -> Path:
    """40 rows of one bucket."""
    return random_dataset(tmp_path_factory.mktemp("epochs") / "out", [20, 20], {"only": (2, 3)})


def read(batches: Iterable[Mapping[str, Any]], most: int | None = None) -> Pass:
    """Rows of the first batches, or of all."""
    return [
        (key, latent.sum().item())
        for batch in itertools.islice(batches, most)
        for key, latent in zip(batch["key"], batch["latent"], strict=True)
    ]


@pytest.fixture
def epochs(dataset: Path) -> list[Pass]:
    """The first five, each in another order and drawn again."""
    passes = [read(lk.open(dataset).batches(8, shuffle=True, epoch=epoch)) for epoch in range(5)]
    assert len({row for rows in passes for row in rows}) == 5 * 40
    return passes


def test_new_batches_for_each_epoch_read_what_one_batches_reads(
    dataset: Path, epochs: list[Pass]
) -> None:
    data, other = lk.open(dataset), lk.open(dataset)
    assert [read(data.batches(8, shuffle=True)) for _ in range(5)] == epochs
    loader = other.batches(8, shuffle=True)
    assert [read(loader) for _ in range(3)] == epochs[:3]
    assert [read(other.batches(8, shuffle=True)) for _ in range(2)] == epochs[3:]


def test_an_epoch_left_early_is_followed_by_the_next(dataset: Path, epochs: list[Pass]) -> None:
    data = lk.open(dataset)
    loader = data.batches(8, shuffle=True)
    assert [read(loader, most=2) for _ in range(2)] == [rows[:16] for rows in epochs[:2]]
    assert read(data.batches(8, shuffle=True), most=1) == epochs[2][:8]
    assert read(loader) == epochs[3]


def test_batches_that_nobody_iterates_do_not_count(dataset: Path, epochs: list[Pass]) -> None:
    data = lk.open(dataset)
    unused = data.batches(8, shuffle=True)
    assert len(unused) == 5
    iter(unused)
    assert unused.state_dict()["epoch"] == 0
    assert read(data.batches(8, shuffle=True)) == epochs[0]
    assert unused.state_dict()["epoch"] == 1
    assert read(unused) == epochs[1]


def test_batches_with_other_arguments_do_not_count(dataset: Path, epochs: list[Pass]) -> None:
    data = lk.open(dataset)
    for epoch in range(3):
        assert read(data.batches(8, shuffle=True, prefetch=1 + epoch)) == epochs[epoch]
        read(data.batches(8), most=epoch)
        read(data.batches(5, shuffle=True), most=1)


def test_ranks_in_one_process_read_the_same_epoch(dataset: Path) -> None:
    data = lk.open(dataset)
    for _ in range(2):
        one_by_one = [
            row
            for rank in range(2)
            for row in read(data.batches(8, shuffle=True, rank=rank, world_size=2))
        ]
        assert len({key for key, _ in one_by_one}) == 40
        loaders = [data.batches(8, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
        in_turns = [row for both in zip(*loaders, strict=True) for row in read(both)]
        assert len({key for key, _ in in_turns}) == 40
        assert not {*one_by_one} & {*in_turns}


def test_an_epoch_that_is_given_is_read_each_time_and_does_not_count(
    dataset: Path, epochs: list[Pass]
) -> None:
    data = lk.open(dataset)
    fixed = data.batches(8, shuffle=True, epoch=3)
    assert [read(fixed), read(fixed, most=2), read(fixed)] == [epochs[3], epochs[3][:16], epochs[3]]
    assert read(data.batches(8, shuffle=True)) == epochs[0]
    data.set_epoch(1)
    assert read(fixed) == epochs[3]
    with pytest.raises(ValueError, match="epoch must be"):
        data.batches(8, epoch=-1)


def test_epoch_that_is_set_is_read_next_by_all(dataset: Path, epochs: list[Pass]) -> None:
    data = lk.open(dataset)
    loader = data.batches(8, shuffle=True)
    for _ in range(2):
        data.set_epoch(2)
        assert [read(loader), read(data.batches(8, shuffle=True))] == epochs[2:4]
    data.set_epoch(1)
    assert read(data.batches(8, shuffle=True)) == epochs[1]
    assert read(loader) == epochs[2]
    iterator = iter(loader)
    next(iterator)
    data.set_epoch(0)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batches"]) == (0, 0)
    next(iterator)
    assert loader.state_dict()["batches"] == 0
    assert read(loader) == epochs[0]


def test_resumed_epoch_is_followed_by_the_next_in_either_loop(
    dataset: Path, epochs: list[Pass]
) -> None:
    data = lk.open(dataset)
    read(data.batches(8, shuffle=True))
    left = data.batches(8, shuffle=True)
    assert read(left, most=3) == epochs[1][:24]
    state = pickle.loads(pickle.dumps(left.state_dict()))
    for makes_anew in (True, False):
        data = lk.open(dataset)
        loader = data.batches(8, shuffle=True)
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert read(loader) == epochs[1][24:]
        if makes_anew:
            loader = data.batches(8, shuffle=True)
        assert loader.state_dict()["epoch"] == 2
        assert read(loader) == epochs[2]


def test_state_between_epochs_is_the_next_ones(dataset: Path, epochs: list[Pass]) -> None:
    loader = lk.open(dataset).batches(8, shuffle=True)
    read(loader)
    resumed = lk.open(dataset).batches(8, shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    assert read(resumed) == epochs[1]

"""An epoch is the same whoever reads it: resumed in another process, dealt out to ranks, read unit
by unit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import latentkit as lk

ROWS = 100

CONTINUE = """
import hashlib, json, sys
import latentkit as lk

path, shuffle, state = json.loads(sys.stdin.read())
data = lk.open(path, columns=["text"], seed=7)
loader = data.batches(6, shuffle=shuffle, rank=1, world_size=2)
loader.load_state_dict(state)
for batch in loader:
    digest = hashlib.sha256(batch["latent"].numpy().tobytes()).hexdigest()
    print(json.dumps([batch["key"], batch["text"], digest]))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, random_dataset: Callable[..., Path]) -> Path:
    """100 rows of two buckets in units of 20."""
    return random_dataset(
        tmp_path_factory.mktemp("resume") / "out", [20] * 5, {"wide": (2, 6), "tall": (6, 3)}
    )


@pytest.mark.parametrize("shuffle", [True, False, "units"])
def test_state_of_one_process_goes_on_in_another(dataset: Path, shuffle: Any) -> None:
    loader = lk.open(dataset, columns=["text"], seed=7).batches(
        6, shuffle=shuffle, rank=1, world_size=2
    )
    for _ in loader:  # one whole epoch before
        pass
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    assert len(json.dumps(state)) < 500
    expected = [
        [batch["key"], batch["text"], hashlib.sha256(batch["latent"].numpy().tobytes()).hexdigest()]
        for batch in iterator
    ]
    finished = subprocess.run(
        [sys.executable, "-c", CONTINUE],
        input=json.dumps([str(dataset), shuffle, state]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert [json.loads(line) for line in finished.stdout.splitlines()] == expected
    assert len(expected) >= 5


@pytest.mark.parametrize("shuffle", [True, False, "units"])
@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_ranks_share_out_every_row_in_equally_many_batches_of_one_bucket(
    dataset: Path, shuffle: Any, world_size: int
) -> None:
    data = lk.open(dataset, posterior="moments")
    shares = [
        list(data.batches(7, shuffle=shuffle, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(share) for share in shares}) == 1
    keys = [key for share in shares for batch in share for key in batch["key"]]
    assert sorted(keys) == [f"{row:05d}" for row in range(ROWS)]
    for batch in itertools.chain.from_iterable(shares):
        assert {int(key) % 2 for key in batch["key"]} == {int(batch["moments"].shape[2:] == (6, 3))}
        assert all(
            torch.equal(batch["moments"][place], data[int(key)]["moments"])
            for place, key in enumerate(batch["key"])
        )


def test_unit_shuffle_finishes_a_unit_before_it_goes_on(
    tmp_path: Path, random_dataset: Callable[..., Path]
) -> None:
    data = lk.open(
        random_dataset(tmp_path / "out", [24] * 6, {"wide": (2, 6), "tall": (6, 3)}),
        posterior="moments",
    )
    visited = []
    for rank in range(2):
        units = [
            {int(key) // 24 for key in batch["key"]}
            for batch in data.batches(6, shuffle="units", rank=rank, world_size=2)
        ]
        assert all(len(one) == 1 for one in units)
        order = [next(iter(one)) for one in units]
        assert len(list(itertools.groupby(order))) == 3
        visited += [unit for unit, _ in itertools.groupby(order)]
    assert sorted(visited) == list(range(6))
    assert visited != sorted(visited)


def test_rows_of_several_units_keep_the_order_they_are_asked_for(
    tmp_path: Path, random_dataset: Callable[..., Path]
) -> None:
    data = lk.open(
        random_dataset(tmp_path / "out", [5, 7, 1, 9], {"only": (4, 4)}),
        posterior="moments",
        columns=["text"],
    )
    asked = np.random.default_rng(2).integers(0, 22, 40).tolist()
    rows = lk.collate(data.__getitems__(asked))
    assert rows["key"] == [f"{row:05d}" for row in asked]
    assert rows["text"] == [f"caption {row}" for row in asked]
    assert all(
        torch.equal(rows["moments"][place], data[row]["moments"]) for place, row in enumerate(asked)
    )
    (shuffled,) = DataLoader(data, batch_size=22, shuffle=True, collate_fn=lk.collate)  # type: ignore[arg-type]
    assert all(
        torch.equal(shuffled["moments"][place], data[int(key)]["moments"])
        for place, key in enumerate(shuffled["key"])
    )


def test_several_buckets_in_one_batch_are_refused(dataset: Path) -> None:
    with pytest.raises(ValueError, match="several buckets"):
        lk.open(dataset).__getitems__([0, 1])


@pytest.mark.parametrize("epoch", [None, 0])
def test_noise_of_a_row_is_that_of_its_place_however_long_the_batch(
    dataset: Path, epoch: int | None
) -> None:
    drawn = lk.open(dataset, posterior="sample")
    both = []
    for items in ([0, 2, 4, 6], [0, 2]):
        torch.manual_seed(0)
        if epoch is not None:
            drawn.set_epoch(epoch)
        both.append(lk.collate(drawn.__getitems__(items))["latent"])
    assert torch.equal(both[0][:2], both[1])


def test_joined_datasets_do_not_share_their_noise(
    tmp_path: Path, random_dataset: Callable[..., Path]
) -> None:
    paths = [random_dataset(tmp_path / name, [8], {"only": (8, 8)}) for name in ("one", "two")]
    first, second = (lk.open(path) for path in paths)
    second.layout = type(second.layout)("other", "gaussian", "CHW", 2, 8)
    (batch,) = lk.join(first, second).batches(8)
    assert not torch.isclose(batch["latent"], batch["other"]).any(dim=3).all()


def test_opened_dataset_is_pickled_small(dataset: Path) -> None:
    data = lk.open(dataset, posterior="mean")
    expected = data[3]["latent"]
    size = len(pickle.dumps(data))
    list(data.batches(5))
    assert data.keys is data.keys
    assert len(pickle.dumps(data)) < size + 100
    assert torch.equal(pickle.loads(pickle.dumps(data))[3]["latent"], expected)

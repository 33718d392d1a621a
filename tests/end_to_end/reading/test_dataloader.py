"""A torch `DataLoader` over a latent dataset, in every way people write one: each pass draws again,
and seeds repeat it.
"""

from __future__ import annotations

import gc
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Subset,
    random_split,
)

import latentkit as lk
from latentkit.reading import batches as loader
from latentkit.runtime.device import choose_device, pins_memory

Rows = dict[str, tuple[str, tuple[float, ...]]]
"""View and latent of each key."""

NUM_KEYS = 24

RANK = """
import json, sys
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
import latentkit as lk

path, rendezvous, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(0)  # alike on both, as most programs do
data = lk.open(path, views="random")
sampler = DistributedSampler(data, seed=0)
for epoch, num_workers in enumerate((0, 0, 2)):
    loader = DataLoader(data, 4, sampler=sampler, collate_fn=lk.collate, num_workers=num_workers)
    sampler.set_epoch(epoch)
    rows = [(key, row.flatten().tolist()) for batch in loader for key, row in zip(batch["key"], batch["latent"])]
    print(json.dumps(rows), flush=True)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable[..., Path]) -> Path:
    """24 samples with two views each; means are 0 and deviations 1, so a latent is the noise
    itself.
    """
    units: dict[str, Any] = {
        f"000-{number:06d}": {"only/moments": np.zeros((16, 4, 2, 3), np.float16)}
        for number in range(3)
    }
    rows = [
        (f"{row // 2:05d}", ("plain", "hflip")[row % 2], f"000-{row // 16:06d}", "only", row % 16)
        for row in range(2 * NUM_KEYS)
    ]
    plain = {"shift": 0.0, "scale": 1.0, "fold": {}}
    return write_dataset(tmp_path_factory.mktemp("drawn") / "out", units, rows, normalization=plain)


def read(batches: Iterable[Mapping[str, Any]]) -> Rows:
    """What a pass gives, each key once."""
    rows: Rows = {}
    for batch in batches:
        for key, view, latent in zip(batch["key"], batch["view"], batch["latent"], strict=True):
            assert key not in rows
            rows[key] = view, tuple(latent.flatten().tolist())
    return rows


def latents(*passes: Rows) -> list[tuple[float, ...]]:
    return [latent for rows in passes for _, latent in rows.values()]


def check_passes(passes: list[Rows], keys: list[str]) -> None:
    """That each pass has every key, and that no two rows of all passes share their noise or most of
    it.
    """
    assert [sorted(rows) for rows in passes] == [keys] * len(passes)
    drawn = latents(*passes)
    assert len({number for latent in drawn for number in latent}) > 0.99 * sum(map(len, drawn))
    changes = [len({rows[key][0] for rows in passes}) > 1 for key in keys]
    assert any(changes), "the view of some key changes"


def plain(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, 5, collate_fn=lk.collate, **options)


LOADERS: dict[str, Callable[[Any], Any]] = {
    "in order": plain,
    "torch's collate": lambda data: DataLoader(data, 5),
    "one by one": lambda data: DataLoader(data, 1, collate_fn=lk.collate),
    "shuffled": lambda data: plain(data, shuffle=True),
    "sampler": lambda data: plain(data, sampler=RandomSampler(data)),
    "batch sampler": lambda data: DataLoader(
        data, batch_sampler=BatchSampler(RandomSampler(data), 5, False), collate_fn=lk.collate
    ),
    "batches as items": lambda data: DataLoader(
        data, None, sampler=RandomSampler(data), collate_fn=lambda row: lk.collate([row])
    ),
    "subset": lambda data: plain(Subset(data, range(NUM_KEYS))),
    "concatenated": lambda data: plain(
        ConcatDataset([Subset(data, range(9)), Subset(data, range(9, NUM_KEYS))])
    ),
    "workers": lambda data: plain(data, shuffle=True, num_workers=2),
    "persistent workers": lambda data: plain(data, num_workers=2, persistent_workers=True),
    "no loader": lambda data: ({name: [value] for name, value in row.items()} for row in data),
}


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
@pytest.mark.parametrize("name", LOADERS)
def test_each_pass_draws_anew_and_repeats_with_torchs_seed(folder: Path, name: str) -> None:
    def program(seed: int) -> list[Rows]:
        torch.manual_seed(seed)
        data = lk.open(folder, views="random")
        loader = LOADERS[name](data)
        return [read(loader if name != "no loader" else LOADERS[name](data)) for _ in range(3)]

    first = program(0)
    check_passes(first, lk.open(folder, views="random").keys)
    assert program(0) == first
    assert not {*latents(*program(1))} & {*latents(*first)}


def test_parts_of_a_random_split_draw_anew(folder: Path) -> None:
    parts = random_split(lk.open(folder, views="random"), [0.75, 0.25])  # type: ignore[arg-type]
    passes = [read(plain(part)) for part in parts for _ in range(2)]
    assert sorted([*passes[0], *passes[2]]) == lk.open(folder, views="random").keys
    assert len({*latents(*passes)}) == 2 * NUM_KEYS


def test_the_datasets_seed_decides_too(folder: Path) -> None:
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(0)
        drawn.append(read(plain(lk.open(folder, views="random", seed=seed))))
    assert not {*latents(drawn[0])} & {*latents(drawn[1])}
    assert [view for view, _ in drawn[0].values()] != [view for view, _ in drawn[1].values()]


def test_item_asked_for_twice_is_drawn_twice_until_an_epoch_is_set(folder: Path) -> None:
    data = lk.open(folder, views="random")
    assert data.epoch is None
    assert len({(data[3]["view"], data[3]["latent"].sum().item()) for _ in range(9)}) == 9
    data.set_epoch(0)
    assert len({(data[3]["view"], data[3]["latent"].sum().item()) for _ in range(9)}) == 1
    with pytest.raises(ValueError, match="from 0 upward, got -1"):
        data.set_epoch(-1)


def test_what_draws_nothing_leaves_torchs_generator_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    for posterior in ("mean", "moments"):
        list(lk.open(folder, posterior=posterior))  # type: ignore[arg-type]
    drawn = lk.open(folder, views="random")
    list(drawn.batches(5, shuffle=True))
    drawn.set_epoch(0)
    list(drawn)
    assert torch.equal(torch.get_rng_state(), state)


def test_epoch_that_was_set_decides_each_row_whatever_its_batch(folder: Path) -> None:
    data = lk.open(folder, views="random")
    found = []
    for epoch in (4, 5, 4):
        data.set_epoch(epoch)
        ways = [
            plain(data),
            plain(data, shuffle=True),
            DataLoader(data, 7),
            LOADERS["no loader"](data),
        ]  # type: ignore[arg-type]
        first, *others = map(read, ways)
        assert all(other == first for other in others)
        again = lk.open(folder, views="random")
        again.set_epoch(epoch)
        assert read(plain(Subset(again, [8, 3]))) == {key: first[key] for key in ("00003", "00008")}  # type: ignore[arg-type]
        found.append(first)
    assert found[0] == found[2]
    check_passes(found[:2], data.keys)


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_epoch_that_is_set_reaches_workers_that_live_on(folder: Path, method: str) -> None:
    data = lk.open(folder, views="random")
    loader = plain(data, num_workers=2, persistent_workers=True, multiprocessing_context=method)
    check_passes([read(loader), read(loader)], data.keys)
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        assert read(loader) == read(plain(data))


def test_ranks_that_seed_torch_alike_share_no_noise(folder: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-W", "ignore", "-c", RANK, str(folder), str(tmp_path / "rendezvous")]
    ranks = [
        subprocess.Popen([*line, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)
    ]
    printed = [process.communicate()[0].splitlines() for process in ranks]
    passes = [[row for lines in printed for row in json.loads(lines[epoch])] for epoch in range(3)]
    assert [sorted(key for key, _ in rows) for rows in passes] == [
        lk.open(folder, views="random").keys
    ] * 3
    numbers = [number for rows in passes for _, row in rows for number in row]
    assert len({*numbers}) > 0.99 * len(numbers)


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
@pytest.mark.parametrize("options", [{}, {"num_workers": 2, "persistent_workers": True}])
def test_accelerate_draws_anew(folder: Path, options: dict[str, Any]) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for part in (False, True):  # of which accelerate sets the epoch, and of which it doesn't
        data = lk.open(folder, views="random")
        loader = accelerator.prepare(
            plain(Subset(data, range(NUM_KEYS)) if part else data, shuffle=True, **options)
        )  # type: ignore[arg-type]
        check_passes([read(loader) for _ in range(3)], data.keys)
        assert (data.epoch is None) == part


class Model(torch.nn.Module):
    """Remembers what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.given: list[tuple[float, ...]] = []

    def forward(self, latent: torch.Tensor) -> dict[str, torch.Tensor]:
        self.given += [tuple(row.flatten().tolist()) for row in latent]
        return {"loss": (latent * self.weight).mean()}


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
@pytest.mark.parametrize(
    "options", [{}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}]
)
def test_trainer_of_transformers_draws_anew(
    folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=5,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        **options,
    )
    model = Model()
    Trainer(model, arguments, lk.collate, lk.open(folder, views="random")).train()  # type: ignore[arg-type]
    assert len(model.given) == 3 * NUM_KEYS
    numbers = [number for row in model.given for number in row]
    assert len({*numbers}) > 0.99 * len(numbers)


class Stream(IterableDataset[Any]):
    """`batches()` as people wrap it, made again for each pass or once."""

    def __init__(self, data: Any, again: bool, **options: Any) -> None:
        self.data, self.options = data, options
        self.batches = None if again else data.batches(5, shuffle=True, **options)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches or self.data.batches(5, shuffle=True, **self.options))


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_share_out_the_batches_of_each_epoch(
    folder: Path, again: bool, persistent: bool, num_workers: int
) -> None:
    data = lk.open(folder, views="random")
    list(data.batches(5, shuffle=True))
    loader = DataLoader(
        Stream(data, again), None, num_workers=num_workers, persistent_workers=persistent
    )
    passes = [read(loader) for _ in range(3)]
    check_passes(passes, data.keys)
    assert len({tuple(rows) for rows in passes}) == 3, "in another order each time"
    data.set_epoch(7)
    fixed = read(loader)
    data.set_epoch(7)
    assert read(loader) == fixed


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_workers_of_several_ranks_want_to_know_the_epoch(folder: Path) -> None:
    data = lk.open(folder)
    loaders = [
        DataLoader(Stream(data, True, rank=rank, world_size=2), None, num_workers=2)
        for rank in range(2)
    ]
    with pytest.raises(ValueError, match="ranks can't agree on the epoch"):
        next(iter(loaders[0]))
    data.set_epoch(3)
    rows = [
        (key, view)
        for loader in loaders
        for batch in loader
        for key, view in zip(batch["key"], batch["view"], strict=True)
    ]
    assert sorted(rows) == sorted(
        (key, view) for key in {*data.keys} for view in ("plain", "hflip")
    )


@pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"
)
def test_a_worker_never_pins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_gpu = pins_memory(choose_device())
    monkeypatch.setattr(loader, "pins_memory", lambda device: True)
    data = lk.open(folder)
    assert not any(batch["latent"].is_pinned() for batch in data.batches(5, pin_memory=False))
    in_worker = DataLoader(Stream(data, False, pin_memory=True), None, num_workers=1)
    assert sum(len(batch["key"]) for batch in in_worker) == 2 * NUM_KEYS
    if has_gpu:
        assert all(batch["latent"].is_pinned() for batch in data.batches(5))
    else:
        with pytest.raises(RuntimeError):  # as the worker would, if it pinned
            next(iter(data.batches(5)))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux lists the open files")
def test_open_datasets_keep_no_file_open(folder: Path) -> None:
    def num_open() -> int:
        gc.collect()  # what earlier tests left open would else be closed between two counts
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    kept = [lk.open(folder) for _ in range(9)]
    assert num_open() == before
    copies = [pickle.loads(pickle.dumps(data)) for data in kept]
    kept[0].set_epoch(3)
    assert [copies[0].epoch, kept[0].epoch] == [None, 3], "a copy has an epoch of its own"
    assert pickle.loads(pickle.dumps(kept[0])).epoch == 3

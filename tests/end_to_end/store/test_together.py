"""Several processes on one output: whoever is late, or comes in between, harms nothing."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

import latentkit as lk
from latentkit.contracts import UnitResult
from latentkit.encoding import encode_source as encoding
from latentkit.errors import StoreError
from latentkit.executors.local import LocalExecutor
from latentkit.store import compact as compacting
from latentkit.store.claims import Claims
from latentkit.store.compact import compact, finish_compaction
from latentkit.store.dataset_json import newest_number, read_dataset
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import Plan, plan_of, read_chain, read_plan, write_plan

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 0}
NUM_PHOTOS = 6


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(NUM_PHOTOS)


@pytest.fixture
def encode(photos: Path, kl_folder: Path, tmp_path: Path) -> Callable[[], lk.LatentDataset]:
    return lambda: lk.encode(photos, tmp_path / "out", encoder=kl_folder, size=32, overrides=FIXED)


def add_one(photos: Path) -> None:
    (photos / "new.png").write_bytes((photos / "000.png").read_bytes())


def newest(output: Path) -> int:
    return newest_number(read_dataset(LocalFolder(output)))


@pytest.mark.parametrize("then", ["another run", "a compaction"])
def test_process_that_ends_late_leaves_the_newer_dataset(
    then: str,
    encode: Callable[[], lk.LatentDataset],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, folder = LocalExecutor.run, LocalFolder(tmp_path / "out")

    def overtaken(*args: Any) -> Iterator[UnitResult]:
        yield from run(*args)
        monkeypatch.setattr(LocalExecutor, "run", run)
        encode()
        if then == "another run":
            add_one(photos)
            encode()
        else:
            compact(folder)

    monkeypatch.setattr(LocalExecutor, "run", overtaken)
    assert len(encode()) == NUM_PHOTOS + (then == "another run")
    assert newest(tmp_path / "out") == 1


def test_datasets_are_closed_by_one_process_at_a_time(
    encode: Callable[[], lk.LatentDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finalize, was_claimed = encoding.finalize, []

    def watched(*args: Any) -> None:
        was_claimed.append((tmp_path / "out" / "claims" / "finalize.json").exists())
        finalize(*args)

    monkeypatch.setattr(encoding, "finalize", watched)
    encode()
    assert was_claimed == [True]


def test_process_that_waited_for_a_compaction_ends_well_though_later_plans_were_finished(
    encode: Callable[[], lk.LatentDataset], photos: Path, tmp_path: Path
) -> None:
    encode()
    folder = LocalFolder(tmp_path / "out")
    assert compact(folder).units_after == 1
    compaction = read_plan(folder, 1)
    add_one(photos)
    encode()
    finish_compaction(folder, compaction)
    assert newest(tmp_path / "out") == 2
    assert len(encode()) == NUM_PHOTOS + 1


def test_compaction_looks_only_once_nobody_else_can_plan(
    encode: Callable[[], lk.LatentDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode()
    was_claimed = []

    def watched(folder: LocalFolder, before: int | None = None) -> list[Plan]:
        was_claimed.append((tmp_path / "out" / "claims" / "plan.json").exists())
        return read_chain(folder, before)

    monkeypatch.setattr(compacting, "read_chain", watched)
    compact(LocalFolder(tmp_path / "out"))
    assert all(was_claimed)


def test_compaction_is_refused_while_somebody_plans(
    encode: Callable[[], lk.LatentDataset], tmp_path: Path
) -> None:
    encode()
    folder = LocalFolder(tmp_path / "out")
    claims = Claims(folder)
    with claims.heartbeat():
        assert claims.take("plan")
        with pytest.raises(StoreError, match="working on it"):
            compact(folder)


def test_compaction_gives_way_to_a_plan_that_was_first(
    encode: Callable[[], lk.LatentDataset],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode()

    def beaten(folder: LocalFolder, plan: Plan) -> None:
        before = read_chain(folder)[-1]
        entries = before.table.select(["key", "stamp", "attributes"])
        write_plan(
            folder,
            plan_of(plan.number, entries, before.settings, before.table["key"].combine_chunks()),
        )
        write_plan(folder, plan)

    with monkeypatch.context() as patch:
        patch.setattr(compacting, "write_plan", beaten)
        with pytest.raises(StoreError, match="another process"):
            compact(LocalFolder(tmp_path / "out"))
    assert len(encode()) == NUM_PHOTOS
    assert newest(tmp_path / "out") == 1


def start(path: Path, count: int, together: Barrier) -> None:
    """Take claims and write files where others discard folders that they find empty."""
    for number in range(count):
        folder = LocalFolder(path / str(number))
        together.wait(timeout=10)  # or break, where another one has failed
        claims = Claims(folder)
        if claims.take("plan"):
            claims.drop("plan")
        folder.discard_if_empty()
        folder.replace("recipe.yaml", b"")


def test_folder_discarded_by_one_process_is_made_again_by_another(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    together = context.Barrier(3)
    processes = [context.Process(target=start, args=(tmp_path, 150, together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]

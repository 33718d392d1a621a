"""What is prepared ahead: bounded, in order, the same from threads and from processes."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest
import torch
from torch import Tensor

from latentkit.contracts import BuildContext, Entry, InputSpec, Prepared, RowMemory, Sample, Unit
from latentkit.errors import LatentkitError, SampleError
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.preparing import units_ahead as preparing
from latentkit.preparing.processes import open_processes
from latentkit.preparing.sample_preparer import Preparer, Task
from latentkit.preparing.units_ahead import UnitsAhead
from latentkit.runtime.buffers import BufferPool, prepared_memory
from latentkit.runtime.cores import num_cores
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig

ROW_BYTES = 4 * 100


class Numbers:
    """Samples whose media is their number."""

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), str(index).encode())

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))


class Rows:
    """100 float32 of a sample's number; counts the tensors that are alive."""

    metrics: Sequence[str] = ()

    def __init__(self, bad: frozenset[int] = frozenset()) -> None:
        self.bad = bad
        self.alive = 0

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        if int(sample.key) in self.bad:
            raise SampleError("bad")
        tensor = torch.full((100,), float(sample.key))
        self.alive += 1
        weakref.finalize(tensor, self.forget)
        yield Prepared("plain", "100", tensor)

    def forget(self) -> None:
        self.alive -= 1

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Nothing to look at."""


def tasks(count: int) -> Iterator[Task]:
    return (Task(position, str(position), position) for position in range(count))


def ahead(
    modality: Rows | ImageModality, count: int, batch_size: int, source: object = None
) -> UnitsAhead:
    preparer = Preparer(source or Numbers(), modality, ["plain"])  # type: ignore[arg-type]
    return UnitsAhead(
        preparer, [(Unit(0, 0, 0, count), tasks(count))], batch_size, BufferPool(False)
    )


def test_outcomes_come_in_order_with_the_bad_ones_in_their_place() -> None:
    with ahead(Rows(frozenset({3, 50})), 100, 8) as look:
        outcomes = [outcome for _, group in look for outcome in group or ()]
    positions = [
        (outcome.skipped or [row.label for row in outcome.rows])[0].position for outcome in outcomes
    ]
    assert positions == list(range(100))
    assert [position for position, outcome in enumerate(outcomes) if outcome.reason] == [3, 50]


def test_a_sample_without_a_place_is_skipped_as_gone() -> None:
    outcomes = Preparer(Numbers(), Rows(), ["plain"]).prepare(
        [Task(0, "0", 0), Task(1, "1", -1), Task(2, "2", 2)]
    )
    assert [outcome.reason for outcome in outcomes] == ["", "gone from the source", ""]
    assert [label.position for label in outcomes[1].skipped] == [1]


@pytest.mark.parametrize(("rows_of_memory", "batch_size"), [(10, 4), (2, 16)])
def test_look_ahead_is_bounded_in_bytes_but_holds_a_batch(
    rows_of_memory: int, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "AHEAD_BYTES", rows_of_memory * ROW_BYTES)
    monkeypatch.setattr(
        preparing, "share_of_cores", lambda: 16
    )  # alone they would allow 64 samples ahead
    modality, most = Rows(), 0
    with ahead(modality, 300, batch_size) as look:
        for _ in look:
            most = max(most, modality.alive)
    group_at_hand = 2 * preparing.GROUP_SAMPLES  # the one handed out, and the one before it
    assert most <= max(rows_of_memory, batch_size) + group_at_hand


class RowsInMemory(Rows):
    """Rows in the memory that it is handed."""

    def prepare(self, sample: Sample, memory: RowMemory | None = None) -> Iterator[Prepared]:
        assert memory is not None
        for view in super().prepare(sample):
            values = memory.get((100,), np.float32)
            values[:] = view.tensor
            yield replace(view, tensor=torch.from_numpy(values))


class RowsOfAnOlderContract(RowsInMemory):
    """Rows in the memory that it asks for."""

    def prepare(self, sample: Sample) -> Iterator[Prepared]:  # type: ignore[override]
        return super().prepare(sample, self)

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return prepared_memory(shape, dtype, BufferPool(False))


@pytest.mark.parametrize(
    ("modality", "copies"),
    [(Rows(), True), (RowsInMemory(frozenset({9})), False), (RowsOfAnOlderContract(), False)],
    ids=lambda value: type(value).__name__,
)
def test_rows_in_the_memory_of_their_batch_are_not_copied(modality: Rows, copies: bool) -> None:
    with ahead(modality, 8, 4) as look:
        rows = [row for _, group in look for outcome in group or () for row in outcome.rows]
    for first in (0, 4):
        batch = preparing.gather(rows[first : first + 4], BufferPool(False))
        assert batch[:, 0].tolist() == [first, first + 1, first + 2, first + 3]
        assert (batch.data_ptr() != rows[first].view.tensor.data_ptr()) == copies  # type: ignore[union-attr]


def test_an_error_in_a_unit_reaches_whoever_iterates() -> None:
    def broken() -> Iterator[Task]:
        yield from tasks(3)
        raise ValueError("the shard is gone")

    look = UnitsAhead(
        Preparer(Numbers(), Rows(), ["plain"]), [(Unit(0, 0, 0, 9), broken())], 4, BufferPool(False)
    )
    with look, pytest.raises(ValueError, match="the shard is gone"):
        list(look)


def test_leaving_early_stops_everything() -> None:
    modality = Rows()
    with ahead(modality, 1000, 4) as look:
        next(iter(look))
    assert modality.alive <= max(8, 4 * num_cores()) + 2 * preparing.GROUP_SAMPLES


# ---------------------------------------------------------------- processes


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> FolderSource:
    return FolderSource(FolderConfig(path=str(make_photos(9))), BuildContext())


def picture_modality(prepare_in: str) -> ImageModality:
    modality = ImageModality(ImageConfig(size=32), BuildContext(input=InputSpec(3)))
    modality.prepare_in = prepare_in  # type: ignore[attr-defined]
    return modality


def picture_tasks(source: FolderSource) -> Iterator[Task]:
    return (Task(place, entry.key, place) for place, entry in enumerate(source.entries()))


def test_processes_give_what_threads_give(photos: FolderSource) -> None:
    got = {}
    for kind in ("threads", "processes"):
        preparer = Preparer(photos, picture_modality(kind), ["plain"])
        with UnitsAhead(
            preparer, [(Unit(0, 0, 0, 9), picture_tasks(photos))], 4, BufferPool(False)
        ) as look:
            got[kind] = [
                row for _, group in look for outcome in group or () for row in outcome.rows
            ]
    assert [row.label for row in got["processes"]] == [row.label for row in got["threads"]]
    assert all(
        torch.equal(a.view.tensor, b.view.tensor)
        for a, b in zip(got["threads"], got["processes"], strict=True)
    )


def preparing_processes() -> list[psutil.Process]:
    """Children of this process that prepare samples, those that have ended left out."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # of a zombie too
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_a_killed_process_ends_the_run_with_one_message_and_leaves_no_other(
    photos: FolderSource,
) -> None:
    before = set(preparing_processes())
    preparer = Preparer(photos, picture_modality("processes"), ["plain"])
    look = UnitsAhead(
        preparer,
        [(Unit(0, 0, 0, 9), picture_tasks(photos)) for _ in range(1000)],
        4,
        BufferPool(False),
    )
    with look, pytest.raises(LatentkitError, match="a process that prepares samples was killed"):
        for _ in look:
            # After the first kill, what was prepared before may still come while the others are let
            # go.
            for worker in [child for child in preparing_processes() if child not in before][:1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGKILL)
    assert set(preparing_processes()) <= before


def test_processes_killed_while_nothing_is_in_flight_end_the_run_with_the_same_message(
    photos: FolderSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, taken, pools = set(preparing_processes()), list[Any](), list[ProcessPoolExecutor]()

    def open_pool(preparer: Preparer) -> ProcessPoolExecutor:
        pools.append(open_processes(preparer))
        return pools[0]

    def kill_between() -> Iterator[tuple[Unit, Iterator[Task]]]:
        yield Unit(0, 0, 0, 9), picture_tasks(photos)
        while sum(len(outcomes or ()) for outcomes in taken) < 9:
            time.sleep(0.01)
        for victim in set(preparing_processes()) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        with contextlib.suppress(BrokenProcessPool):
            while True:  # until the pool has noticed
                pools[0].submit(int)
                time.sleep(0.01)
        yield Unit(0, 1, 9, 18), picture_tasks(photos)

    monkeypatch.setattr(preparing, "open_processes", open_pool)
    look = UnitsAhead(
        Preparer(photos, picture_modality("processes"), ["plain"]),
        kill_between(),
        4,
        BufferPool(False),
    )
    with look, pytest.raises(LatentkitError, match="a process that prepares samples was killed"):
        for _, outcomes in look:
            taken.append(outcomes)


PARENT = """
import sys, time
import psutil
from latentkit.sources.options import FolderConfig; from latentkit.modalities.options import ImageConfig
from latentkit.contracts import BuildContext, InputSpec
from latentkit.modalities.image import ImageModality
from latentkit.preparing.sample_preparer import Preparer, Task
from latentkit.preparing.processes import open_processes, prepare_in_child
from latentkit.sources.folder import FolderSource

if __name__ == "__main__":
    source = FolderSource(FolderConfig(path=sys.argv[1]), BuildContext())
    modality = ImageModality(ImageConfig(size=32), BuildContext(input=InputSpec(3)))
    pool = open_processes(Preparer(source, modality, ["plain"]))
    pool.submit(prepare_in_child, [Task(0, "000.png", 0)]).result()
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    time.sleep(600)
"""


def test_processes_end_when_their_parent_is_killed(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script), str(make_photos(1))], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert children
        parent.kill()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []


class Files:
    """Samples that are files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), self.paths[index])

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))


class Opened:
    """The first byte of a file, which it opens itself; the first time it sees a file, that is
    written again before it looks.
    """

    metrics: Sequence[str] = ()
    takes_paths = True

    def __init__(self) -> None:
        self.seen: list[Path] = []

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        assert isinstance(sample.media, Path)
        if sample.media not in self.seen:
            sample.media.write_bytes(b"new")
        self.seen.append(sample.media)
        yield Prepared("plain", "1", torch.tensor([float(sample.media.read_bytes()[0])]))

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Nothing to look at."""


def test_a_file_that_changes_while_it_is_prepared_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what is hashed is what was decoded, for a modality that opens files itself."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    (tmp_path / "a").write_bytes(b"old content")
    modality = Opened()
    (outcome,) = Preparer(Files(tmp_path), modality, ["plain"]).prepare([Task(0, "0", 0)])
    assert len(modality.seen) == 2
    assert outcome.rows[0].label.content == hashlib.sha256(b"new").hexdigest()
    assert outcome.rows[0].view.tensor == torch.tensor([float(b"n"[0])])

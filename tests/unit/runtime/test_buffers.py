"""The live line of one process among several, and memory that is used again."""

from __future__ import annotations

import gc
import io
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.runtime import progress
from latentkit.runtime.buffers import (
    BatchMemory,
    BatchRows,
    BufferPool,
    as_tensor,
    lending,
    prepared_memory,
)
from latentkit.runtime.progress import Progress
from latentkit.runtime.transfer import Transfer


def test_the_line_counts_what_other_processes_did(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)
    with Progress(100, "samples", shown=True) as line:
        line.others = 60
        line.update(20, 0.0)
    pattern = r"80/100 samples, ([\d.]+)/s \(([\d.]+)/s here\), encoder waited 0%, 0 s left\n"
    found = re.fullmatch(pattern, printed.getvalue())
    assert found
    assert float(found[1]) == pytest.approx(4 * float(found[2]), rel=0.01)


def test_a_pool_holds_no_more_buffers_than_were_in_use_at_a_time() -> None:
    pool = BufferPool(False)
    for size in range(1, 50):
        held = [pool.get((size, 10), np.float32) for _ in range(2)]
        assert not np.shares_memory(*held)
        del held
    assert pool.num_idle == 2


def test_memory_is_not_used_again_while_a_tensor_made_from_it_lives() -> None:
    pool = BufferPool(False)
    tensor = torch.from_numpy(pool.get((4, 8), np.float32))[1:3].view(-1)
    other = pool.get((4, 8), np.float32)
    assert not np.shares_memory(tensor.numpy(), other)
    address = tensor.data_ptr()
    del tensor
    assert pool.get((2, 8), np.float32).ctypes.data == address - 8 * 4


def test_rows_prepared_side_by_side_are_a_batch_without_a_copy() -> None:
    pool = BufferPool(False)
    memory = BatchMemory(pool, 3)
    rows = []
    for number in (2, 0, 1):
        with lending(BatchRows(memory, number, 1, pool)):
            rows.append(prepared_memory((5,), np.float32, pool))
        rows[-1][:] = number
    assert memory.rows(3).tolist() == [[0.0] * 5, [1.0] * 5, [2.0] * 5]
    assert memory.holds(2, torch.from_numpy(rows[0]))
    assert not memory.holds(1, torch.from_numpy(rows[0]))
    with lending(BatchRows(memory, 1, 1, pool)):
        other_shape = prepared_memory((6,), np.float32, pool)
    assert not np.shares_memory(other_shape, memory.rows(3))


def test_memory_asked_for_too_often_is_never_the_next_samples() -> None:
    pool = BufferPool(False)
    memory = BatchMemory(pool, 4)
    with lending(BatchRows(memory, 0, 2, pool)):
        asked = [prepared_memory((5,), np.float32, pool) for _ in range(4)]
    batch = memory.rows(4)
    assert [np.shares_memory(row, batch) for row in asked] == [True, True, False, False]
    assert not np.shares_memory(asked[2], asked[3])


def test_memory_that_is_lent_goes_to_the_thread_that_asks_inside_and_to_no_other() -> None:
    pool = BufferPool(False)
    memory = BatchMemory(pool, 1)
    with lending(BatchRows(memory, 0, 1, pool)), ThreadPoolExecutor(1) as other:
        asked = other.submit(prepared_memory, (5,), np.float32, pool).result()
        own = prepared_memory((5,), np.float32, pool)
    after = prepared_memory((5,), np.float32, pool)
    batch = memory.rows(1)
    assert [np.shares_memory(row, batch) for row in (asked, own, after)] == [False, True, False]


def test_a_row_that_is_kept_is_never_overwritten_by_later_batches() -> None:
    pool = BufferPool(False)
    kept = []
    for number in range(20):
        memory = BatchMemory(pool, 4)
        rows = [BatchRows(memory, place, 1, pool).get((6,), np.float32) for place in range(4)]
        for row in rows:
            row[:] = number
        if number % 7 == 0:
            kept.append((number, torch.from_numpy(rows[2])[1:]))
        del memory, rows, row
    assert [tensor.tolist() for _, tensor in kept] == [[float(number)] * 5 for number, _ in kept]
    assert pool.num_idle == 1


def test_memory_is_used_again_wherever_its_last_view_ends() -> None:
    pool = BufferPool(False)
    cycle: list[object] = [pool.get((8,), np.uint8)]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert pool.num_idle == 1
    with ThreadPoolExecutor(8) as threads:

        def fill(number: int) -> bool:
            array = pool.get((64,), np.int64)
            array[:] = number
            time.sleep(0)
            return bool((array == number).all())

        assert all(threads.map(fill, range(2000)))
    assert pool.num_idle <= 8


def test_a_tensor_of_a_pools_array_is_a_view_of_the_storage_that_torch_made() -> None:
    made = torch.arange(64, dtype=torch.uint8)
    array = made.numpy().view(np.int16).reshape(4, 8)
    whole, part = as_tensor(array), as_tensor(array[1:3, ::2])
    for tensor in (whole, part):
        assert tensor.untyped_storage()._cdata == made.untyped_storage()._cdata
    assert torch.equal(whole, torch.from_numpy(array))
    assert torch.equal(part, torch.from_numpy(array[1:3, ::2]))
    plain = np.arange(6.0).reshape(2, 3)
    assert np.shares_memory(as_tensor(plain[1:]).numpy(), plain)


class OnAnotherDevice(Tensor):
    """A tensor that says it is on a device other than CPU and CUDA."""

    device = torch.device("mps")

    def cpu(self) -> Tensor:  # type: ignore[override]
        return self.as_subclass(Tensor)


def test_latents_on_a_device_without_cuda_are_copied_plainly() -> None:
    latent = torch.arange(3.0)
    host, wait = Transfer("cpu").to_host({"latent": latent.as_subclass(OnAnotherDevice)})
    wait()
    assert type(host["latent"]) is Tensor
    assert torch.equal(host["latent"], latent)

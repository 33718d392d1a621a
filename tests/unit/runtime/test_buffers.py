"""The live line of one process among several, and memory that is used again."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.runtime import progress
from latentkit.runtime.buffers import (
    BatchMemory,
    BufferPool,
    as_tensor,
    prepared_memory,
    preparing_into,
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
    assert len(pool._buffers) == 2


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
        with preparing_into(memory, number, 1):
            rows.append(prepared_memory((5,), np.float32, pool))
        rows[-1][:] = number
    assert memory.rows(3).tolist() == [[0.0] * 5, [1.0] * 5, [2.0] * 5]
    assert memory.holds(2, torch.from_numpy(rows[0]))
    assert not memory.holds(1, torch.from_numpy(rows[0]))
    with preparing_into(memory, 1, 1):
        other_shape = prepared_memory((6,), np.float32, pool)
    assert not np.shares_memory(other_shape, memory.rows(3))


def test_memory_asked_for_too_often_is_never_the_next_samples() -> None:
    pool = BufferPool(False)
    memory = BatchMemory(pool, 4)
    with preparing_into(memory, 0, 2):
        asked = [prepared_memory((5,), np.float32, pool) for _ in range(4)]
    batch = memory.rows(4)
    assert [np.shares_memory(row, batch) for row in asked] == [True, True, False, False]
    assert not np.shares_memory(asked[2], asked[3])


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

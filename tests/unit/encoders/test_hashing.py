"""Hashes of weights: what changes them, and what must not."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import Tensor

from latentkit.encoders.hashing import hash_tensors

WEIGHT = torch.arange(24.0).reshape(1, 2, 3, 4)


def test_the_hash_is_sha256_over_name_dtype_shape_and_bytes_sorted_by_name() -> None:
    one, two = torch.tensor([1.0, 2.0]), torch.tensor(3, dtype=torch.int64)
    expected = hashlib.sha256(
        b"a\0int64\0\0"
        + (3).to_bytes(8, "little")
        + b"b\0float32\x002\0"
        + bytes.fromhex("0000803f00000040")
    ).hexdigest()
    assert hash_tensors({"b": one, "a": two}) == expected


def test_order_memory_format_and_gradients_make_no_difference() -> None:
    strided = WEIGHT.to(memory_format=torch.channels_last).requires_grad_()
    assert hash_tensors({"w": WEIGHT, "v": torch.ones(1)}) == hash_tensors(
        {"v": torch.ones(1), "w": strided}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"v": WEIGHT},
        {"w": WEIGHT.half()},
        {"w": WEIGHT.reshape(2, 1, 3, 4)},
        {"w": WEIGHT + 1e-5},
        {"w": WEIGHT, "e": torch.empty(0)},
    ],
    ids=["name", "dtype", "shape", "value", "one more"],
)
def test_any_difference_in_the_tensors_shows(other: dict[str, Tensor]) -> None:
    assert hash_tensors({"w": WEIGHT}) != hash_tensors(other)


def test_bfloat16_and_scalars_can_be_hashed() -> None:
    assert (
        len(hash_tensors({"a": torch.tensor(1.0), "b": torch.ones(2, dtype=torch.bfloat16)})) == 64
    )

"""Rows computed together have the values that each has alone."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import latentkit as lk
from latentkit.exporting.row_block import RowBlock, draw_noise, fill_noise
from latentkit.testing import copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

KEYS = [f"{number}/ü.png" for number in range(70)]


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 32, 32), (1,)])
def test_noise_of_many_rows_is_that_of_each_alone(shape: tuple[int, ...]) -> None:
    together = np.empty((len(KEYS), *shape), np.float32)
    fill_noise(3, KEYS, ["plain"] * len(KEYS), together)
    for key, noise in zip(KEYS, together, strict=True):
        assert np.array_equal(noise, draw_noise(3, key, "plain", shape).numpy())


def test_noise_is_box_and_mullers_of_a_stream_from_seed_key_and_view() -> None:
    digest = hashlib.sha256("5\0kä\0hflip".encode()).digest()
    state, step = (int.from_bytes(part, "little") for part in (digest[:16], digest[16:]))
    stream = np.random.PCG64()
    numbers = {"state": state, "inc": step | 1}
    stream.state = {**stream.state, "state": numbers, "has_uint32": 0, "uinteger": 0}
    bits = stream.random_raw(2).view(np.int32).astype(np.float64)
    radius = np.sqrt(-2 * np.log(np.abs((bits[:2].astype(int) | 1) * 2.0**-31)))
    angle = bits[2:] * math.pi * 2.0**-31
    expected = [*(radius * np.cos(angle)), *(radius * np.sin(angle))]
    found = draw_noise(5, "kä", "hflip", (2, 2)).flatten().tolist()
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("has_moments", [True, False])
def test_values_are_those_of_a_row_alone_in_memory_of_their_own(
    seed: int | None, has_moments: bool, tmp_path: Path
) -> None:
    shape = DatasetShape(has_two_sizes=False, has_moments=has_moments)
    data = lk.open(copy_dataset(tmp_path / "latents", shape), posterior="mean")
    places = np.arange(len(data))
    values, mask, labels = data.load_stored(places)
    block = RowBlock(data, values, labels["key"], labels["view"], seed)
    rows = block.rows(data.bucket_names(places), [{}] * len(data), mask)
    assert len(rows) == 12
    for row, key in zip(rows, labels["key"], strict=True):
        raw = row.mean
        if has_moments and seed is not None:
            assert row.noise is not None
            noise = draw_noise(seed, key, row.view, raw.shape)
            assert torch.equal(row.noise(), noise)
            raw = raw + (row.logvar / 2).exp() * noise
        assert torch.equal(row.raw, raw)
        assert torch.equal(row.latent, (raw - 0.25) * 2)
        for value in (row.raw, row.latent):
            assert value.untyped_storage().nbytes() == value.nbytes

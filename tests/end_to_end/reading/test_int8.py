"""Latents stored as int8 with a scale per row and channel read as float32, whichever way they are
asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import latentkit as lk
from latentkit.errors import DamagedError

ROWS = 11


@pytest.fixture(scope="module")
def dataset(
    tmp_path_factory: pytest.TempPathFactory, write_dataset: Callable[..., Path]
) -> tuple[Path, npt.NDArray[np.float64]]:
    """Two units, and the value of every row's moments, (ROWS, 4, 3, 5)."""
    generator = np.random.default_rng(1)
    integers = generator.integers(-127, 128, (ROWS, 4, 3, 5)).astype(np.int8)
    scales = generator.uniform(0.001, 0.02, (ROWS, 4)).astype(np.float32)
    units, rows = {}, []
    for name, part in (("000-000000", slice(0, 6)), ("000-000001", slice(6, ROWS))):
        units[name] = {"a/moments": integers[part], "a/moments.scale": scales[part]}
        rows += [
            (f"{part.start + place}", "plain", name, "a", place)
            for place in range(len(integers[part]))
        ]
    path = write_dataset(tmp_path_factory.mktemp("int8") / "out", units, rows, "int8")
    return path, integers.astype(np.float64) * scales[:, :, None, None].astype(np.float64)


def test_moments_and_means_are_integer_times_scale(
    dataset: tuple[Path, npt.NDArray[np.float64]],
) -> None:
    path, values = dataset
    data = lk.open(path, posterior="moments")
    (batch,) = data.batches(100)
    assert batch["moments"].dtype == torch.float32
    np.testing.assert_allclose(batch["moments"], values, rtol=1e-6)
    one = data.moments(8)
    assert one["mean"].dtype == torch.float32
    np.testing.assert_allclose(torch.cat([one["mean"], one["logvar"]]), values[8], rtol=1e-6)
    means = lk.open(path, posterior="mean")
    np.testing.assert_allclose(
        means[8]["latent"], (values[8, :2] - 0.25) * 0.5, rtol=1e-5, atol=1e-7
    )
    rows = lk.collate(means.__getitems__([9, 2, 7]))["latent"]
    np.testing.assert_allclose(rows, (values[[9, 2, 7], :2] - 0.25) * 0.5, rtol=1e-5, atol=1e-7)


def test_draws_have_the_stored_mean_and_deviation(
    dataset: tuple[Path, npt.NDArray[np.float64]],
) -> None:
    path, values = dataset
    data = lk.open(path, posterior="sample")
    draws = []
    for epoch in range(500):
        data.set_epoch(epoch)
        (batch,) = data.batches(100)
        draws.append(batch["latent"] / 0.5 + 0.25)
    noise = (torch.stack(draws).double().numpy() - values[:, :2]) / np.exp(values[:, 2:] / 2)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 0.02
    assert (np.abs(noise.mean(0)) < 6 / np.sqrt(500)).all()


def test_scales_of_another_shape_are_refused(
    tmp_path: Path, write_dataset: Callable[..., Path]
) -> None:
    tensors: dict[str, Any] = {
        "a/moments": np.zeros((2, 4, 3, 5), np.int8),
        "a/moments.scale": np.zeros((2, 3), np.float32),
    }
    path = write_dataset(
        tmp_path / "out", {"000-000000": tensors}, [("k", "plain", "000-000000", "a", 1)], "int8"
    )
    with pytest.raises(DamagedError, match=r"moments\.scale"):
        lk.open(path)[0]

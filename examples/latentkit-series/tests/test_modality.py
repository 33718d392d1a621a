"""The modality keeps the contract, and cuts and scales as it says."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from latentkit.contracts import BuildContext, InputSpec, Sample, SizeRule
from latentkit.errors import RecipeError, SampleError
from latentkit.testing import ModalityContract
from torch import Tensor

from latentkit_series.plugin import SeriesConfig, latentkit_modalities

WANTED = InputSpec(channels=2, sizes={"L": SizeRule(multiple=8)}, axes="CL")


def npy(values: npt.NDArray[np.floating]) -> bytes:
    """Return a .npy file."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def prepare(values: npt.NDArray[np.floating], key: str = "a", **options: object) -> Tensor:
    modality = latentkit_modalities().build(SeriesConfig(**options), BuildContext(input=WANTED))
    (prepared,) = modality.prepare(Sample(key, npy(values)))
    assert isinstance(prepared.tensor, Tensor)
    return prepared.tensor


class TestSeries(ModalityContract):
    spec = latentkit_modalities()
    input = WANTED

    def make_config(self, tmp_path: Path) -> SeriesConfig:
        return SeriesConfig(length=16, crop="random", full_scale=2.0)

    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        generator = np.random.default_rng(0)
        series = [generator.normal(size=(length, 2)) for length in (16, 40)]
        return [Sample(str(len(values)), npy(values)) for values in series]


def test_the_middle_is_cut_out_scaled_and_clipped() -> None:
    ramp = np.stack([np.arange(10.0), -np.arange(10.0)], 1)
    expected = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]) / 4
    assert torch.equal(prepare(ramp, length=8, full_scale=4.0)[:1], expected.clamp(-1, 1))
    assert torch.equal(prepare(ramp, length=8, full_scale=4.0)[1:], (-expected).clamp(-1, 1))


def test_a_random_crop_is_another_one_in_another_epoch() -> None:
    ramp = np.arange(2000.0).reshape(1000, 2) / 2000
    crops = [prepare(ramp, key=f"a#{epoch}", length=8, crop="random") for epoch in range(3)]
    assert len({float(crop[0, 0]) for crop in crops}) == 3


def test_a_length_that_the_encoder_does_not_take_is_refused() -> None:
    with pytest.raises(RecipeError, match="a multiple of 8, got 12; nearest: 8"):
        prepare(np.zeros((20, 2)), length=12)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((9, 3)), "expected .time, channels. of 2"),
        (np.zeros((7, 2)), "7 values along time, expected at least 8"),
        (np.full((9, 2), np.nan), "not finite"),
        (np.array([["a", "b"]] * 9), "not an array of numbers"),
    ],
)
def test_a_series_that_cannot_be_used_says_why(
    values: npt.NDArray[np.floating], reason: str
) -> None:
    with pytest.raises(SampleError, match=reason):
        prepare(values, length=8)

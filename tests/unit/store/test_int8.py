"""Latents as int8: a row's integers and scales are its own, the error is measured, and what it
costs in decibels is stated.
"""

from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from latentkit.contracts import BuildContext, Encoder, InputSpec, LatentLayout, Normalization
from latentkit.encoders.options import TinyKLConfig
from latentkit.encoders.tiny_kl import open_tiny_kl
from latentkit.encoding.int8_psnr import measure_psnr
from latentkit.errors import DamagedError
from latentkit.store.int8 import (
    RoundingError,
    dequantize,
    measure_error,
    quantize,
    summarize_error,
)

Float32s = npt.NDArray[np.float32]


def draw_latents(*shape: int, spread: float = 1.0) -> Float32s:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * spread).astype(np.float32)


def test_scale_is_the_largest_value_of_a_row_and_channel_and_halves_go_to_even() -> None:
    values = np.array(
        [[[127, -63.5, 0.5, 1.5], [0, -254, 1, 3]], [[0.5, 0.25, 0, -0.5], [0, 0, 0, 0]]],
        np.float32,
    )
    stored, scale = quantize(values)
    np.testing.assert_array_equal(scale, np.array([[1, 2], [0.5 / 127, 0]], np.float32))
    np.testing.assert_array_equal(
        stored, [[[127, -64, 0, 2], [0, -127, 0, 2]], [[127, 64, 0, -127], [0, 0, 0, 0]]]
    )
    assert stored.dtype == np.int8
    np.testing.assert_array_equal(dequantize(stored, scale)[0], [[127, -64, 0, 2], [0, -254, 0, 4]])


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4), (2, 3, 4, 5, 6), (1, 1, 1, 1), (2, 3, 0)])
def test_no_value_is_off_by_more_than_half_a_step(shape: tuple[int, ...]) -> None:
    values = draw_latents(*shape, spread=30)
    stored, scale = quantize(values)
    assert stored.shape == shape
    steps = np.abs(values).reshape(*shape[:2], -1).max(axis=2, initial=0).astype(np.float64) / 127
    np.testing.assert_allclose(scale, steps, rtol=1e-6)
    distance = np.abs(dequantize(stored, scale).astype(np.float64) - values).reshape(*shape[:2], -1)
    assert (distance <= steps[:, :, None] * 0.500001).all()


def test_rows_do_not_depend_on_their_batch() -> None:
    values = draw_latents(7, 4, 3, 5)
    stored, scale = quantize(values)
    for row in range(7):
        alone, own_scale = quantize(values[row : row + 1])
        np.testing.assert_array_equal(alone[0], stored[row])
        np.testing.assert_array_equal(own_scale[0], scale[row])


@pytest.mark.parametrize(
    "size",
    [0.0, 1e-45, 2.1e-43, 1e-40, 1.4e-36, 1.6e-36, 1e-30, 1e30, float(np.finfo(np.float32).max)],
)
def test_values_of_any_size_stay_in_range(size: float) -> None:
    values = np.array([[[size, -size, size * 0.3, 0]]], np.float32)
    stored, scale = quantize(values)
    expected = [0, 0, 0, 0] if size < 1.5e-36 else [127, -127, 38, 0]
    np.testing.assert_array_equal(stored[0, 0], expected)
    assert (scale > 0).all() == (size > 1.5e-36)
    assert np.isfinite(dequantize(stored, scale)).all()


def test_error_is_that_of_a_plain_calculation_in_float64_and_adds_up() -> None:
    given = draw_latents(6, 3, 4, 4)
    stored = dequantize(*quantize(given))
    whole = measure_error(stored, given)
    np.testing.assert_allclose(
        whole.rms,
        np.sqrt(((stored.astype(np.float64) - given) ** 2).mean(axis=(0, 2, 3))),
        rtol=1e-12,
    )
    parts = measure_error(stored[:2], given[:2]) + measure_error(stored[2:], given[2:])
    assert parts.count == whole.count == 6 * 16
    np.testing.assert_allclose(parts.rms, whole.rms, rtol=1e-12)
    again = RoundingError.from_json(json.loads(json.dumps(whole.as_json())))
    assert again.as_json() == whole.as_json()


def header(name: str, count: int, squares: list[float]) -> dict[str, str]:
    return {"quantisation": json.dumps({name: {"count": count, "squares": squares}})}


def test_summary_tells_means_from_logvars_over_all_units() -> None:
    headers = [
        header("moments", 2, [8.0, 0.0, 2.0, 1.0]),
        {},
        header("moments", 2, [8.0, 4.0, 14.0, 0.0]),
    ]
    assert summarize_error(headers) == {"rms": {"mean": [2.0, 1.0], "logvar": [2.0, 0.5]}}
    assert summarize_error([header("latent", 4, [1.0, 4.0])]) == {"rms": {"latent": [0.5, 1.0]}}
    assert summarize_error([{}, {}]) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}}",
        '{"moments": 1}',
        '{"moments": {"count": 1}}',
        '{"moments": {"count": "x", "squares": []}}',
    ],
)
def test_damaged_entry_is_damage(text: str) -> None:
    with pytest.raises(DamagedError, match="quantisation entry is damaged"):
        summarize_error([{"quantisation": text}])


def test_units_of_different_channels_are_damage() -> None:
    with pytest.raises(DamagedError, match="damaged"):
        summarize_error([header("latent", 4, [1.0, 4.0]), header("latent", 4, [1.0, 4.0, 5.0])])


# ---------------------------------------------------------------- decibels


class Copy:
    """Latents that are the picture itself, times `gain` when decoded."""

    modality = "image"
    input = InputSpec(channels=3, range=(-2.0, 2.0))
    layout = LatentLayout("latent", "deterministic", "CHW", 3, 1)
    normalization = Normalization()

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        return {"latent": batch}

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.gain

    def fingerprint(self) -> dict[str, str]:
        return {}


class OneWay(Copy):
    decode = None  # type: ignore[assignment]


def draw_views(count: int, size: int = 16) -> list[Tensor]:
    return [
        torch.from_numpy(draw_latents(3, size, size + number)).clamp(-1, 1)
        for number in range(count)
    ]


def test_psnr_is_over_the_input_range_and_the_mean_over_views() -> None:
    views = draw_views(3)
    levels = []
    for view in views:
        values = view.numpy().astype(np.float64)
        scale = np.abs(values).max(axis=(1, 2), keepdims=True) / 127
        squared = np.mean((np.round(values / scale) * scale - values) ** 2)
        levels.append(10 * math.log10(4.0**2 / squared))
    assert measure_psnr(Copy(), views) == pytest.approx(np.mean(levels), abs=0.006)


def test_psnr_does_not_count_what_leaves_the_input_range() -> None:
    view = (
        torch.where(draw_views(1)[0] < 0, -1.0, 1.0) * 0.999
    )  # every value a little less than the largest
    view[:, 0, 0] = 1.0
    assert (measure_psnr(Copy(), [view]) or 0) < 100
    assert measure_psnr(Copy(gain=3.0), [view]) == 100


def test_psnr_of_equal_decodings_is_a_number() -> None:
    assert measure_psnr(Copy(), [torch.zeros(3, 8, 8)]) == 100


@pytest.mark.parametrize(
    ("encoder", "views"),
    [
        (OneWay(), draw_views(1)),
        (Copy(), []),
        (Copy(), [torch.full((3, 4, 4), torch.nan)]),
        (Copy(gain=math.nan), draw_views(1)),
    ],
)
def test_psnr_that_cannot_be_had_is_none(encoder: Copy, views: list[Tensor]) -> None:
    assert isinstance(encoder, Encoder)
    assert measure_psnr(encoder, views) is None


def test_psnr_of_a_trained_autoencoder_is_high() -> None:
    encoder = open_tiny_kl(TinyKLConfig(), BuildContext())
    rows, columns = np.mgrid[0:64, 0:64]
    view = torch.from_numpy(
        np.stack([np.sin(rows / (5 + c) + columns / 7) for c in range(3)]).astype(np.float32)
    )
    assert 45 < (measure_psnr(encoder, [view]) or 0) < 75

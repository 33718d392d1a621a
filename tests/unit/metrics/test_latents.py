"""Statistics, active units and spectrum of latents, against numpy on all of them at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Measured, Metric, MetricBatch, MetricSetting, Moments
from latentkit.errors import RecipeError, SourceError
from latentkit.metrics.latents import ActiveUnits, Histogram, LatentStatistics
from latentkit.metrics.metric import NoiseRows
from latentkit.metrics.spectrum import LatentSpectrum

LAYOUT = LatentLayout("latent", "gaussian", "CHW", 3, 8)


def measure(
    metric: Metric, batches: Sequence[MetricBatch], layout: LatentLayout = LAYOUT
) -> Measured:
    metric.start(MetricSetting((-1.0, 1.0), layout, "the posterior's mean"))
    for batch in batches:
        metric.add(batch)
    return metric.finish()


def batch_of(latents: Tensor, logvar: Tensor | None = None) -> MetricBatch:
    moments = None if logvar is None else Moments(latents, logvar)
    return MetricBatch(range(len(latents)), latents, moments)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_statistics_are_those_of_all_latents_at_once_means_and_draws() -> None:
    mean = draw(10, 3, 4, 6) * torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1) + 100
    logvar = draw(10, 3, 4, 6, seed=1)
    found = measure(
        LatentStatistics(), [batch_of(mean[:7], logvar[:7]), batch_of(mean[7:], logvar[7:])]
    )
    exact, variance = mean.double().numpy(), np.exp(logvar.double().numpy())
    channels = found.tables["channels"]
    np.testing.assert_allclose(channels["mean"], exact.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(channels["mean_std"], exact.std(axis=(0, 2, 3)), rtol=1e-10)
    std = np.sqrt(exact.var(axis=(0, 2, 3)) + variance.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(channels["std"], std, rtol=1e-10)
    config = found.tables["model_config"]
    assert config["latents_std"] == channels["std"]
    assert config["shift_factor"] == pytest.approx(exact.mean())
    assert config["scaling_factor"] == pytest.approx(1 / math.sqrt(exact.var() + variance.mean()))


def test_few_latents_are_said_to_be_few() -> None:
    few, enough = (
        measure(LatentStatistics(), [batch_of(draw(10, 3, side, side))]).warnings
        for side in (4, 32)
    )
    assert few == [
        "latent-statistics: only 160 values per channel; 10,000 and more make them steady"
    ]
    assert enough == []


def test_histograms_count_every_finite_value_where_it_is() -> None:
    values = [draw(100, seed=seed).double().numpy() * 10**seed + 3 for seed in (0, 1, 2)]
    histogram = Histogram(values[0])
    for piece in values:
        histogram.add(piece)
    found = histogram.as_json()
    edges = found["low"] + found["width"] * np.arange(len(found["counts"]) + 1)
    # a value on an edge may fall to either side, so edges are moved by a hair
    expected, _ = np.histogram(np.concatenate(values), bins=edges - 1e-9)
    assert sum(found["counts"]) == 300
    assert found["counts"] == expected.tolist()


def test_values_that_are_not_finite_are_left_out_of_histograms() -> None:
    latents = draw(2, 3, 4, 4)
    latents[0, 0, 0, 0] = math.nan
    with np.errstate(invalid="ignore"):
        found = measure(LatentStatistics(), [batch_of(latents)])
    assert [sum(table["counts"]) for table in found.tables["histograms"].values()] == [31, 32, 32]


def test_units_are_active_whose_mean_varies_by_more_than_the_threshold() -> None:
    means = draw(200, 2, 2, 1)
    scales = torch.tensor([[0.05, 1.0], [0.15, 0.0]]).view(
        1, 2, 2, 1
    )  # variances 0.0025, 1, 0.0225, 0
    found = measure(
        ActiveUnits(0.01),
        [batch_of(scales * means[:50], means[:50]), batch_of(scales * means[50:], means[50:])],
    )
    assert found.figures[""].value == 2
    assert found.figures["share"].value == 0.5
    assert found.tables["by_channel"] == [1, 1]


def test_active_units_of_several_shapes_are_refused() -> None:
    with pytest.raises(SourceError, match="needs latents of one shape, got 3x4x4 and 3x4x6"):
        measure(ActiveUnits(0.01), [batch_of(draw(2, 3, 4, 4)), batch_of(draw(2, 3, 4, 6))])


def test_the_spectrum_of_white_noise_is_flat_at_its_variance() -> None:
    scales = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
    found = measure(
        LatentSpectrum(None),
        [batch_of(scales * draw(200, 3, 16, 16, seed=seed) + 7) for seed in (0, 1)],
    )
    power = np.array(found.tables["power"])
    assert power.shape == (3, 8)
    np.testing.assert_allclose(power, np.repeat([[1.0], [4.0], [9.0]], 8, axis=1), rtol=0.08)
    assert abs(found.figures["slope"].value) < 0.05


def test_the_power_of_a_wave_is_in_the_ring_of_its_frequency() -> None:
    wave = torch.cos(2 * math.pi * 5 * torch.arange(20) / 20).expand(2, 3, 20, 20)
    found = measure(LatentSpectrum(None), [batch_of(wave.contiguous())])
    power = np.array(found.tables["power"])
    ring = int(np.argmax(power[0]))
    assert found.tables["frequencies"][ring] == pytest.approx(0.25, abs=0.03)
    assert np.delete(power, ring, axis=1).max() < 1e-9


def test_a_spectrum_falls_with_the_slope_of_its_latents() -> None:
    """Noise whose amplitude is 1 / f has power 1 / f^2."""
    side = 64
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    frequencies[0, 0] = 1
    noise = np.fft.fft2(draw(100, 3, side, side).numpy()) / frequencies
    found = measure(
        LatentSpectrum(None), [batch_of(torch.from_numpy(np.fft.ifft2(noise).real).float())]
    )
    assert found.figures["slope"].value == pytest.approx(-2, abs=0.1)


def test_the_spectrum_of_latents_that_are_no_maps_is_refused() -> None:
    layout = LatentLayout("latent", "gaussian", "CL", 3, 8)
    with pytest.raises(RecipeError, match="needs latents with axes CHW, got CL"):
        measure(LatentSpectrum(None), [], layout)


def take(positions: Sequence[int], *counts: int, seed: int = 0, stream: int = 1) -> Any:
    rows = NoiseRows(seed, stream, positions, (3, 2), torch.device("cpu"))
    return torch.cat([rows.take(count) for count in counts])


def test_noise_depends_on_seed_stream_and_sample_alone() -> None:
    together = take([0, 1, 2], 40)
    assert torch.equal(together, take([0, 1, 2], 17, 23))
    assert torch.equal(together[:, 1:2], take([1], 40))
    assert not torch.equal(together, take([0, 1, 2], 40, seed=1))
    assert not torch.equal(together, take([0, 1, 2], 40, stream=2))
    assert together.double().mean() == pytest.approx(0, abs=0.15)
    assert together.double().std() == pytest.approx(1, abs=0.1)

"""Samplers and the gap to the prior against closed forms: of a linear autoencoder (probabilistic
PCA, Tipping and Bishop 1999), and of a field with a known covariance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from latentkit.reading.dataset import open_dataset
from latentkit.uses.fit_sampler import measure_gap
from latentkit.uses.nearest_rows import find_nearest, reference_distances
from latentkit.uses.raw_rows import BATCH_VALUES, RawRows, open_rows
from latentkit.uses.samplers import (
    ChannelGaussian,
    LowRankGaussian,
    Sampler,
    SpatialGaussian,
    StandardNormal,
    mean_log_density,
)

Floats = npt.NDArray[np.float64]
Write = Callable[..., Path]

NUM_ROWS, NUM_VALUES, NUM_LATENTS = 10_000, 8, 3
SIDE = 8
GAIN = 1.7
CLOSE = 0.005


class LinearVae:
    """Moments that a linear encoder gives for data of probabilistic PCA, and their closed forms.
    Latents are rotated, so that channels are correlated, and larger than the prior by `GAIN`.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        mixing = rng.normal(size=(NUM_LATENTS, NUM_VALUES)) * np.array([[2.0], [1.2], [0.8]])
        data = rng.normal(size=(NUM_ROWS, NUM_LATENTS)) @ mixing
        data += 0.3 * rng.normal(size=(NUM_ROWS, NUM_VALUES)) + 0.5
        centered = data - data.mean(0)
        values, vectors = np.linalg.eigh(centered.T @ centered / NUM_ROWS)
        values, vectors = values[::-1], vectors[:, ::-1]
        noise = values[NUM_LATENTS:].mean()
        top = values[:NUM_LATENTS]
        weights = vectors[:, :NUM_LATENTS] * np.sqrt(top - noise)
        rotation = np.linalg.qr(rng.normal(size=(NUM_LATENTS, NUM_LATENTS)))[0] * GAIN
        self.means = centered @ (weights / top) @ rotation.T
        self.variances = np.full(NUM_LATENTS, 0.04)
        self.covariance_of_means = rotation @ np.diag(1 - noise / top) @ rotation.T
        self.covariance = self.covariance_of_means + np.diag(self.variances)

    def moments(self) -> npt.NDArray[np.float32]:
        logvar = np.broadcast_to(np.log(self.variances), self.means.shape)
        return np.concatenate([self.means, logvar], 1).astype(np.float32)


LINEAR = LinearVae()


def write_rows(write: Write, path: Path, moments: npt.NDArray[Any], axes: str) -> Path:
    channels = moments.shape[1] // 2
    layout = {"name": "latent", "kind": "gaussian", "axes": axes, "channels": channels}
    rows = [(f"{n:05d}", "plain", "000-000000", "all", n) for n in range(len(moments))]
    units = {"000-000000": {"all/moments": moments}}
    more = {"layout": {**layout, "downscale": 1, "ragged_axis": None}}
    return write(path, units, rows, "float32", **more)


@pytest.fixture(scope="module")
def linear(write_dataset: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(write_dataset, tmp_path_factory.mktemp("linear") / "z", LINEAR.moments(), "C")


@pytest.fixture(scope="module")
def field(write_dataset: Write, tmp_path_factory: pytest.TempPathFactory) -> RawRows:
    """Noise of one channel, each value added to 0.5 of its right neighbor: a variance of 1.25, a
    covariance of 0.5 with each horizontal neighbor, and none with others.
    """
    noise = np.random.default_rng(0).normal(size=(3000, 1, SIDE, SIDE))
    latents = noise + 0.5 * np.roll(noise, 1, axis=3)
    moments = np.concatenate([latents, np.full_like(latents, -30)], 1).astype(np.float32)
    path = write_rows(write_dataset, tmp_path_factory.mktemp("field") / "z", moments, "CHW")
    return open_rows(open_dataset(path), "mean", 0)


def expected_log_density(covariance: Floats) -> float:
    """Mean in nats per value, of latents with the covariance that the Gaussian has."""
    size = len(covariance)
    entropy = np.linalg.slogdet(covariance)[1] + size * (1 + math.log(2 * math.pi))
    return float(-0.5 * entropy / size)


def kl_to_prior(covariance: Floats) -> float:
    size = len(covariance)
    return float(np.trace(covariance) - size - np.linalg.slogdet(covariance)[1]) / (2 * size)


def test_the_gap_of_a_linear_autoencoder_is_its_closed_form(linear: Path) -> None:
    gap = measure_gap(open_rows(open_dataset(linear), "sample", 0))
    rate = (np.trace(LINEAR.covariance) - NUM_LATENTS - np.log(LINEAR.variances).sum()) / 2
    assert gap.kl_at_least == pytest.approx(kl_to_prior(LINEAR.covariance), rel=CLOSE)
    assert gap.kl_at_most == pytest.approx(rate / NUM_LATENTS, rel=CLOSE)
    assert gap.std == pytest.approx(np.sqrt(np.diag(LINEAR.covariance)), rel=CLOSE)
    assert gap.mean == pytest.approx([0] * NUM_LATENTS, abs=1e-4)


@pytest.mark.parametrize("posterior", ["mean", "sample"])
@pytest.mark.parametrize("fit", [SpatialGaussian.fit, lambda rows: LowRankGaussian.fit(rows, 99)])
def test_samplers_of_a_linear_autoencoder_have_its_closed_form(
    linear: Path, posterior: str, fit: Callable[[RawRows], Sampler]
) -> None:
    rows = open_rows(open_dataset(linear), posterior, 0)
    covariance = LINEAR.covariance if posterior == "sample" else LINEAR.covariance_of_means
    sampler = fit(rows)
    assert mean_log_density(sampler, rows) == pytest.approx(
        expected_log_density(covariance), rel=CLOSE
    )
    drawn = sampler.draw(100_000, torch.Generator().manual_seed(0)).numpy()
    found = np.cov(drawn.T, bias=True)
    assert np.abs(found - covariance).max() < 0.03 * np.trace(covariance) / NUM_LATENTS


def test_independent_channels_are_less_probable_by_their_mutual_information(linear: Path) -> None:
    rows = open_rows(open_dataset(linear), "mean", 0)
    diagonal = np.diag(np.diag(LINEAR.covariance_of_means))
    found = mean_log_density(ChannelGaussian.fit(rows), rows)
    assert found == pytest.approx(expected_log_density(diagonal), rel=CLOSE)
    prior = -0.5 * (np.trace(LINEAR.covariance_of_means) / NUM_LATENTS + math.log(2 * math.pi))
    assert mean_log_density(StandardNormal(rows.shape), rows) == pytest.approx(prior, rel=CLOSE)


def test_a_field_keeps_its_covariance_with_neighbors(field: RawRows) -> None:
    sampler = SpatialGaussian.fit(field)
    drawn = sampler.draw(4000, torch.Generator().manual_seed(1)).numpy()
    lags = {
        (down, right): float((drawn * np.roll(drawn, (down, right), (2, 3))).mean())
        for down, right in [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1)]
    }
    expected = {(0, 0): 1.25, (0, 1): 0.5, (1, 0): 0.0, (0, 2): 0.0, (1, 1): 0.0}
    assert lags == pytest.approx(expected, abs=0.02)
    waves = np.abs(1 + 0.5 * np.exp(-2j * np.pi * np.fft.fftfreq(SIDE))) ** 2
    density = -0.5 * (np.log(waves).mean() + 1 + math.log(2 * math.pi))
    assert mean_log_density(sampler, field) == pytest.approx(density, rel=CLOSE)


def test_low_rank_finds_the_directions_and_the_variance_of_the_rest(field: RawRows) -> None:
    rank = SIDE * SIDE // 2
    sampler = LowRankGaussian.fit(field, rank)
    values = field.some(len(field)).flatten(1).double().numpy()
    spectrum = np.sort(np.linalg.eigvalsh(np.cov(values.T, bias=True)))[::-1]
    assert sampler.variances.numpy() == pytest.approx(spectrum[:rank], rel=CLOSE)
    assert sampler.rest == pytest.approx(spectrum[rank:].mean(), rel=CLOSE)
    size = len(spectrum)
    volume = np.log(spectrum[:rank]).sum() + (size - rank) * math.log(sampler.rest)
    density = -0.5 * (volume / size + 1 + math.log(2 * math.pi))
    assert mean_log_density(sampler, field) == pytest.approx(density, rel=CLOSE)


def test_a_mixture_finds_two_clusters(write_dataset: Write, tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from latentkit.uses.mixture import GaussianMixture

    rng = np.random.default_rng(0)
    sides = rng.choice([-5.0, 5.0], size=(1000, 1), p=[0.25, 0.75])
    latents = sides + 0.5 * rng.normal(size=(1000, 2))
    moments = np.concatenate([latents, np.full_like(latents, -30)], 1).astype(np.float32)
    rows = open_rows(open_dataset(write_rows(write_dataset, tmp_path, moments, "C")), "mean", 0)
    drawn = GaussianMixture.fit(rows, 2, 0).draw(4000, torch.Generator().manual_seed(0)).numpy()
    right = (drawn > 0).all(1)
    assert float(right.mean()) == pytest.approx(0.75, abs=0.03)
    assert drawn[right].mean(0) == pytest.approx([5, 5], abs=0.1)
    assert drawn[right].std(0) == pytest.approx([0.5, 0.5], abs=0.05)


def test_a_copy_is_seen_as_a_copy(field: RawRows) -> None:
    items = np.array([7, 2999])
    copies, _ = field.moments(items)
    one = torch.ones(1)
    nearest = find_nearest(copies, field, one, None)
    assert nearest.keys == ["00007", "02999"]
    assert nearest.distances.max() < 1e-3
    others = find_nearest(copies, field, one, torch.from_numpy(items))
    assert not set(others.keys) & {"00007", "02999"}
    assert others.distances.min() > 0.5
    assert 0.5 < float(reference_distances(field, one).median()) < 2


def test_rows_are_read_in_batches_of_a_fixed_size(linear: Path) -> None:
    rows = open_rows(open_dataset(linear), "mean", 0)
    sizes = [batch.numel() for batch in rows.batches()]
    assert max(sizes) <= BATCH_VALUES
    assert sum(sizes) == NUM_ROWS * NUM_LATENTS


def test_every_pass_gives_the_same_draws_and_other_seeds_others(linear: Path) -> None:
    first, again = (open_rows(open_dataset(linear), "sample", 5).some(50) for _ in range(2))
    other = open_rows(open_dataset(linear), "sample", 6).some(50)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

"""Distributions of raw latents: each is fitted to rows, drawn from, and asked how probable latents
are under it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from latentkit.uses.raw_rows import RawRows

LOG_TWO_PI = math.log(2 * math.pi)
MOST_VALUES = 2**25
"""Values held at once to find directions: 128 MiB in float32."""
SMALLEST_SHARE = 1e-6
"""Smallest variance in any direction, as a share of the mean variance."""


class Sampler(Protocol):
    """A distribution of raw latents."""

    name: ClassVar[str]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return new raw latents, (count, C, ...) float32."""
        ...

    def log_density(self, latents: Tensor) -> Tensor:
        """Return the log-probability density in nats, (N,) float64, of raw latents (N, C, ...)."""
        ...


@dataclass(frozen=True)
class StandardNormal:
    """The prior of a variational autoencoder, N(0, 1) for each value."""

    name: ClassVar[str] = "normal"
    shape: tuple[int, ...]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, *shape) float32."""
        return torch.randn((count, *self.shape), generator=generator)

    def log_density(self, latents: Tensor) -> Tensor:
        """Return nats, (N,) float64."""
        return -0.5 * (latents.flatten(1).double().square() + LOG_TWO_PI).sum(1)


@dataclass(frozen=True)
class ChannelGaussian:
    """Independent values, with mean and standard deviation of their channel.

    Args:
        mean, std: (C,) float64.
    """

    name: ClassVar[str] = "channel-gaussian"
    shape: tuple[int, ...]
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, rows: RawRows) -> ChannelGaussian:
        """Return the one with the rows' mean and standard deviation per channel."""
        mean, squares = channel_moments(rows.batches())
        variance = (squares - mean.square()).clamp_min(0)
        floor = SMALLEST_SHARE * variance.mean() + torch.finfo(torch.float32).tiny
        return cls(rows.shape, mean, variance.clamp_min(float(floor)).sqrt())

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, *shape) float32."""
        noise = torch.randn((count, *self.shape), generator=generator)
        return noise * self._wide(self.std).float() + self._wide(self.mean).float()

    def log_density(self, latents: Tensor) -> Tensor:
        """Return nats, (N,) float64."""
        scaled = (latents.double() - self._wide(self.mean)) / self._wide(self.std)
        per_position = math.prod(self.shape[1:])
        constant = per_position * float(self.std.log().sum()) * 2
        return -0.5 * ((scaled.square() + LOG_TWO_PI).flatten(1).sum(1) + constant)

    def _wide(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (len(self.shape) - 1))


@dataclass(frozen=True)
class SpatialGaussian:
    """Values that vary together with the other channels and with their neighborhood, in the same
    way everywhere: a stationary Gaussian, by its spectrum. Positions wrap around the edges.

    Args:
        mean: (C,) float64.
        spectrum: (P, C, C) complex128, covariance of the channels at each spatial frequency.
    """

    name: ClassVar[str] = "spatial-gaussian"
    shape: tuple[int, ...]
    mean: Tensor
    spectrum: Tensor

    @classmethod
    def fit(cls, rows: RawRows) -> SpatialGaussian:
        """Return the one with the rows' mean per channel and mean spectrum."""
        num_channels, count = rows.shape[0], len(rows)
        total = torch.zeros(math.prod(rows.shape[1:]), num_channels, num_channels).to(
            torch.complex128
        )
        mean, _ = channel_moments(rows.batches())
        for latents in rows.batches():
            waves = _waves(latents.double() - mean.reshape(-1, *[1] * (latents.ndim - 2)))
            total += torch.einsum("ncp,ndp->pcd", waves, waves.conj())
        spectrum = total / count
        own = torch.diagonal(spectrum, dim1=1, dim2=2).real
        # With few rows the channels' covariance at one frequency is singular; it is drawn towards
        # its diagonal by as much as its entries are uncertain.
        share = num_channels / (num_channels + count) if num_channels > 1 else 0.0
        floor = SMALLEST_SHARE * own.mean() + torch.finfo(torch.float32).tiny
        diagonal = torch.diag_embed(own * share + floor).to(spectrum.dtype)
        return cls(rows.shape, mean, spectrum * (1 - share) + diagonal)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, *shape) float32."""
        noise = torch.randn((count, *self.shape), generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(self.spectrum)
        waves = torch.einsum("pcd,ndp->ncp", factor, _waves(noise)).reshape(noise.shape)
        if noise.ndim > 2:
            waves = torch.fft.ifftn(waves, dim=_places(noise), norm="ortho")
        return (waves.real + self._center()).float()

    def log_density(self, latents: Tensor) -> Tensor:
        """Return nats, (N,) float64."""
        waves = _waves(latents.double() - self._center()).permute(2, 1, 0)
        factor = torch.linalg.cholesky(self.spectrum)
        white = torch.linalg.solve_triangular(factor, waves, upper=False)
        size = math.prod(self.shape)
        log_volume = 2 * torch.diagonal(factor, dim1=1, dim2=2).real.log().sum()
        distance: Tensor = white.abs().square().sum((0, 1))
        return -0.5 * (distance + log_volume + size * LOG_TWO_PI)

    def _center(self) -> Tensor:
        return self.mean.reshape(-1, *[1] * (len(self.shape) - 1))


@dataclass(frozen=True)
class LowRankGaussian:
    """A Gaussian with the directions of largest variance, and the same variance in all others:
    probabilistic PCA (Tipping and Bishop, 1999, eq. 7 and 8).

    Args:
        mean: (D,) float32, D values of a latent.
        directions: (r, D) float32, orthonormal.
        variances: (r,) float64, along them.
        rest: variance along any other.
    """

    name: ClassVar[str] = "low-rank"
    shape: tuple[int, ...]
    mean: Tensor
    directions: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def fit(cls, rows: RawRows, rank: int) -> LowRankGaussian:
        """Return the one of greatest likelihood for up to `MOST_VALUES` values of rows."""
        size = math.prod(rows.shape)
        values = rows.some(max(2, MOST_VALUES // size)).flatten(1)
        mean = values.mean(0)
        centered = values - mean
        count, rank = len(values), min(rank, size - 1, len(values) - 1)
        wide = size > count
        product = (centered @ centered.T if wide else centered.T @ centered).double() / count
        eigenvalues, vectors = torch.linalg.eigh(product)
        kept = eigenvalues.flip(0)[:rank].clamp_min(0)
        total = float(centered.double().square().sum()) / count
        smallest = SMALLEST_SHARE * total / size + torch.finfo(torch.float32).tiny
        rest = max((total - float(kept.sum())) / (size - rank), smallest)
        top = vectors.flip(1)[:, :rank].float()
        directions = torch.nn.functional.normalize((centered.T @ top if wide else top).T, dim=1)
        return cls(rows.shape, mean, directions, kept.clamp_min(rest), rest)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, *shape) float32."""
        noise = torch.randn((count, len(self.mean)), generator=generator) * math.sqrt(self.rest)
        along = torch.randn((count, len(self.variances)), generator=generator)
        along = along * (self.variances - self.rest).sqrt().float()
        return (self.mean + noise + along @ self.directions).reshape(count, *self.shape)

    def log_density(self, latents: Tensor) -> Tensor:
        """Return nats, (N,) float64."""
        size, rank = len(self.mean), len(self.variances)
        log_volume = float(self.variances.log().sum()) + (size - rank) * math.log(self.rest)
        return -0.5 * (self._squared_distance(latents) + log_volume + size * LOG_TWO_PI)

    def distance(self, latents: Tensor) -> Tensor:
        """Return the Mahalanobis distance of raw latents (N, C, ...) from the mean, (N,) float64,
        as a root mean square over values: near 1 for latents of this distribution.
        """
        return (self._squared_distance(latents) / len(self.mean)).sqrt()

    def _squared_distance(self, latents: Tensor) -> Tensor:
        centered = latents.flatten(1) - self.mean
        along = (centered @ self.directions.T).double().square()
        across = centered.double().square().sum(1) - along.sum(1)
        return (along / self.variances).sum(1) + across.clamp_min(0) / self.rest


def mean_log_density(sampler: Sampler, rows: RawRows) -> float:
    """Return the mean log-density of rows, in nats per value."""
    total = sum(float(sampler.log_density(latents).sum()) for latents in rows.batches())
    return total / (len(rows) * math.prod(rows.shape))


def channel_moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and mean square per channel, (C,) float64."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for latents in batches:
        values = latents.transpose(0, 1).flatten(1).double()
        count += values.shape[1]
        total, squares = total + values.sum(1), squares + values.square().sum(1)
    return total / count, squares / count


def _waves(latents: Tensor) -> Tensor:
    """Return the Fourier transform over positions, (N, C, P), unitary."""
    if latents.ndim == 2:
        return latents[..., None].to(torch.complex128)
    waves: Tensor = torch.fft.fftn(latents, dim=_places(latents), norm="ortho")
    return waves.flatten(2)


def _places(latents: Tensor) -> list[int]:
    return list(range(2, latents.ndim))

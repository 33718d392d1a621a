"""The network of `volume-kl`: a small 3-D KL autoencoder.

Each half is a linear map between cubes of voxels and the latent channels, plus a residual network
whose output starts at zero. The linear maps start as the lowest frequencies of the discrete cosine
transform, so training starts near what a linear map can do. Activations are normalized over the
channels at one position only, so latents of a patch equal those of the whole volume except near the
patch's borders.

Shapes: (N, C, D, H, W) with channels last in memory, in which 3-D convolutions on CPUs are fast.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, cast

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.functional import silu

from latentkit.contracts import LOGVAR_RANGE, Config, Moments, Reconstruction

BRANCH_GAIN = 0.2
"""Factor of what the residual networks add to the linear maps. Behind a layer that starts at zero
the first steps are a jump, which the factor reduces.
"""
START_LOGVAR, LOGVAR_GAIN = -12.0, 0.05
"""Log variance of an untrained network, and the factor of what the network adds to it. If it jumps,
noise hides the latents.
"""
SPREAD, DECAY = 0.5, 2.0
"""Approximate standard deviation of a voxel in [-1, 1], and how fast that of waves falls with their
squared frequency.
"""


class Architecture(Config):
    """Everything that decides the network's shape; see `VolumeKLConfig`."""

    channels: PositiveInt
    latent_channels: PositiveInt
    downscale: Literal[4, 8]
    widths: tuple[PositiveInt, PositiveInt]
    blocks: tuple[PositiveInt, PositiveInt]


class Residual(nn.Module):
    """x + two 3 x 3 x 3 convolutions of x, normalized over channels. Starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv3d(channels, channels, 3, padding=1)
        self.second = zero_weights(nn.Conv3d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        return x + cast(Tensor, self.second(silu(self.first(normed))))


class Encoder(nn.Module):
    """Maps volumes (N, C, D, H, W) to mean and logvar, (N, 2 latent channels, D / f, H / f, W /
    f).
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        (fine, coarse), self.downscale = shape.widths, shape.downscale
        self.linear = nn.Conv3d(shape.channels * shape.downscale**3, shape.latent_channels, 1)
        self.start = nn.Conv3d(shape.channels * (shape.downscale // 2) ** 3, fine, 3, padding=1)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(shape.blocks[0])))
        self.down = nn.Conv3d(fine * 2**3, coarse, 1)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(shape.blocks[1])))
        self.moments = zero_weights(nn.Conv3d(coarse, 2 * shape.latent_channels, 3, padding=1))
        waves, spreads = initial_basis(shape)
        with torch.no_grad():
            self.linear.weight.copy_((waves / spreads[:, None])[:, :, None, None, None])
        zero_bias(self.linear)

    def forward(self, volumes: Tensor) -> Tensor:
        hidden = self.fine(self.start(space_to_depth(volumes, self.downscale // 2)))
        hidden = self.coarse(self.down(space_to_depth(hidden, 2)))
        mean, logvar = self.moments(hidden).chunk(2, dim=1)
        linear = self.linear(space_to_depth(volumes, self.downscale))
        return torch.cat([linear + BRANCH_GAIN * mean, START_LOGVAR + LOGVAR_GAIN * logvar], dim=1)


class Decoder(nn.Module):
    """Maps raw latents (N, latent channels, d, h, w) to volumes (N, C, f d, f h, f w),
    approximately in [-1, 1] and not clamped.
    """

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        (fine, coarse), self.downscale = shape.widths, shape.downscale
        self.linear = nn.Conv3d(
            shape.latent_channels, shape.channels * shape.downscale**3, 3, padding=1
        )
        self.start = nn.Conv3d(shape.latent_channels, coarse, 3, padding=1)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(shape.blocks[1])))
        self.up = nn.Conv3d(coarse, fine * 2**3, 1)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(shape.blocks[0])))
        self.voxels = zero_weights(
            nn.Conv3d(fine, shape.channels * (shape.downscale // 2) ** 3, 3, padding=1)
        )
        waves, spreads = initial_basis(shape)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[:, :, 1, 1, 1] = (waves * spreads[:, None]).T
        zero_bias(self.linear)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.coarse(self.start(latents))
        detail = depth_to_space(
            self.voxels(self.fine(depth_to_space(self.up(hidden), 2))), self.downscale // 2
        )
        return depth_to_space(self.linear(latents), self.downscale) + BRANCH_GAIN * detail


class VolumeKL(nn.Module):
    """A KL autoencoder for volumes."""

    def __init__(self, shape: Architecture) -> None:
        super().__init__()
        self.encoder = Encoder(shape)
        self.decoder = Decoder(shape)

    def encode(self, volumes: Tensor) -> Moments:
        """Return the posterior of (N, C, D, H, W) in [-1, 1], sizes divisible by f: mean and logvar
        (in [-30, 20]), each (N, latent channels, D / f, ...).
        """
        mean, logvar = self.encoder(volumes).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents: Tensor) -> Tensor:
        """Return volumes (N, C, f d, f h, f w) of raw latents, approximately in [-1, 1], not
        clamped.
        """
        return cast(Tensor, self.decoder(latents))

    def forward(self, volumes: Tensor) -> Reconstruction:
        """Reconstruct volumes from one posterior draw, made with torch's global random numbers.
        Moments and draw are float32.
        """
        moments = self.encode(volumes)
        moments = Moments(moments.mean.float(), moments.logvar.float())
        latents = moments.mean + torch.exp(0.5 * moments.logvar) * torch.randn_like(moments.mean)
        return Reconstruction(output=self.decode(latents), latents=latents, moments=moments)


def space_to_depth(volumes: Tensor, factor: int) -> Tensor:
    """Reshape (N, C, D, H, W) to (N, C factor^3, D / factor, ...): each cube of voxels becomes
    channels, ordered by channel, d, h, w.
    """
    n, c, d, h, w = volumes.shape
    cubes = volumes.reshape(n, c, d // factor, factor, h // factor, factor, w // factor, factor)
    flat = cubes.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(
        n, d // factor, h // factor, w // factor, c * factor**3
    )
    return flat.movedim(-1, 1)


def depth_to_space(values: Tensor, factor: int) -> Tensor:
    """Undo `space_to_depth`."""
    n, c, d, h, w = values.shape
    cubes = values.movedim(1, -1).reshape(n, d, h, w, c // factor**3, factor, factor, factor)
    return cubes.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(
        n, c // factor**3, d * factor, h * factor, w * factor
    )


def zero_weights(layer: nn.Conv3d) -> nn.Conv3d:
    """Set the layer's weight and bias to zero, and return it."""
    nn.init.zeros_(layer.weight)
    zero_bias(layer)
    return layer


def zero_bias(layer: nn.Conv3d) -> None:
    """Set a layer's bias to zero."""
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def initial_basis(shape: Architecture) -> tuple[Tensor, Tensor]:
    """Return the lowest orthonormal waves on a cube of voxels, one per row, and the approximate
    standard deviation of volumes' coefficients in them.

    Waves are sorted by their squared frequency, those of all channels one after the other; values
    are ordered as in `space_to_depth`.
    """
    side = shape.downscale
    place = (torch.arange(side) + 0.5) * math.pi / side
    lines = [
        torch.ones(side),
        *(math.sqrt(2) * torch.cos(place * number) for number in range(1, side)),
    ]
    numbers = sorted(
        itertools.product(range(side), repeat=3),
        key=lambda wave: (sum(number**2 for number in wave), wave),
    )
    waves, spreads = torch.zeros(shape.latent_channels, shape.channels, side, side, side), []
    for row, (wave, channel) in enumerate(
        itertools.islice(itertools.product(numbers, range(shape.channels)), shape.latent_channels)
    ):
        waves[row, channel] = (
            torch.einsum("i,j,k->ijk", *(lines[number] for number in wave)) / side**1.5
        )
        spreads.append(SPREAD * side**1.5 / (1 + DECAY * sum(number**2 for number in wave)))
    return waves.flatten(1), torch.tensor(spreads)

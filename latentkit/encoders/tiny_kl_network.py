"""The network of `tiny-kl`: a small KL autoencoder for RGB images, fast on a CPU and fast to train.

Each half is a linear map between 8 x 8 patches and the latent channels (4, up to 16), plus a
residual network whose output starts at zero. The linear maps start as functions of the discrete
cosine transform: luma, its two lowest frequencies, one color difference, and so on. So training
starts near the quality of principal component analysis, and learns what a linear map can't do.
Normalization is over the channels at one position only, so an image's latents don't depend on
distant parts of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from latentkit.contracts import Moments, Reconstruction
from latentkit.contracts.encoder_description import LOGVAR_RANGE

DOWNSCALE = 8
LUMA, WARMTH, GREEN = (1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0)
START = (
    (LUMA, 0, 0, 7.0),
    (LUMA, 0, 1, 2.0),
    (LUMA, 1, 0, 2.0),
    (WARMTH, 0, 0, 2.0),
    (GREEN, 0, 0, 1.3),
    (LUMA, 2, 0, 0.7),
    (LUMA, 1, 1, 0.6),
    (LUMA, 0, 2, 0.6),
    (LUMA, 3, 0, 0.45),
    (LUMA, 2, 1, 0.45),
    (WARMTH, 0, 1, 0.4),
    (LUMA, 1, 2, 0.4),
    (LUMA, 0, 3, 0.4),
    (WARMTH, 1, 0, 0.4),
    (LUMA, 2, 2, 0.3),
    (LUMA, 3, 1, 0.3),
)
"""Initial function of each latent channel: color, frequency down and across an 8 x 8 patch, and the
approximate standard deviation of that coefficient in photographs. Coefficients are divided by it,
so latents start near unit variance. Sorted by it in descending order.
"""
BRANCH_GAIN = 0.2
"""Factor of what the residual networks add to the linear maps.

Adam's first steps move every weight by the learning rate, however small its gradient. Behind a
layer that starts at zero that is a jump. The factor reduces the jump, so a higher learning rate is
stable.
"""
START_LOGVAR, LOGVAR_GAIN = -12.0, 0.05
"""Log variance of an untrained network, and the factor of what the network adds to it.

If the log variance of a rare image jumps up, noise hides its latents and the loss explodes. So it
starts low and moves slowly.
"""


class Residual(nn.Module):
    """x + two 3 x 3 convolutions of x, normalized over channels. Starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = zero_weights(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + cast(Tensor, self.second(silu(self.first(normed))))


class Encoder(nn.Module):
    """Maps (N, 3, H, W) in [-1, 1] to mean and logvar, (N, 2 C, H / 8, W / 8)."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        quarter, eighth = widths
        self.linear = nn.Conv2d(3 * DOWNSCALE**2, channels, 1)
        self.start = nn.Conv2d(3 * 4**2, quarter, 3, padding=1)
        self.quarter = nn.Sequential(*(Residual(quarter) for _ in range(blocks[0])))
        self.down = nn.Conv2d(quarter * 2**2, eighth, 1)
        self.eighth = nn.Sequential(*(Residual(eighth) for _ in range(blocks[1])))
        self.moments = zero_weights(nn.Conv2d(eighth, 2 * channels, 3, padding=1))
        with torch.no_grad():
            self.linear.weight.copy_(
                (initial_basis(channels) / initial_std(channels)[:, None])[:, :, None, None]
            )
            zero_bias(self.linear)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.quarter(self.start(pixel_unshuffle(images, 4)))
        hidden = self.eighth(self.down(pixel_unshuffle(hidden, 2)))
        mean, logvar = self.moments(hidden).chunk(2, dim=1)
        linear = self.linear(pixel_unshuffle(images, DOWNSCALE))
        return torch.cat([linear + BRANCH_GAIN * mean, START_LOGVAR + LOGVAR_GAIN * logvar], dim=1)


class Decoder(nn.Module):
    """Maps raw latents (N, C, h, w) to (N, 3, 8 h, 8 w), approximately in [-1, 1] and not
    clamped.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        quarter, eighth = widths
        self.linear = nn.Conv2d(channels, 3 * DOWNSCALE**2, 3, padding=1)
        self.start = nn.Conv2d(channels, eighth, 3, padding=1)
        self.eighth = nn.Sequential(*(Residual(eighth) for _ in range(blocks[1])))
        self.up = nn.Conv2d(eighth, quarter * 2**2, 1)
        self.quarter = nn.Sequential(*(Residual(quarter) for _ in range(blocks[0])))
        self.pixels = zero_weights(nn.Conv2d(quarter, 3 * 4**2, 3, padding=1))
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.weight[:, :, 1, 1] = (
                initial_basis(channels) * initial_std(channels)[:, None]
            ).T
            zero_bias(self.linear)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.eighth(self.start(latents))
        detail = pixel_shuffle(self.pixels(self.quarter(pixel_shuffle(self.up(hidden), 2))), 4)
        return pixel_shuffle(self.linear(latents), DOWNSCALE) + BRANCH_GAIN * detail


class TinyKL(ModelMixin, ConfigMixin):
    """A KL autoencoder in diffusers' folder format; `TinyKL.from_pretrained(folder)` loads what
    training wrote.

    Args:
        encoder_widths: channels at a quarter and at an eighth of the image's size.
        encoder_blocks: residual blocks at the same two sizes.
        decoder_widths: as for the encoder.
        decoder_blocks: as for the encoder.
        scaling_factor: 1 / standard deviation of all latents together, measured after training.
        shift_factor: mean of all latents together.
        latents_mean: mean of each latent channel; None before it is measured.
        latents_std: standard deviation of each latent channel, of a posterior draw; None before it
            is measured.
        channels: C of the latents, 1 to 16.

    Raises:
        ValueError: the number of channels is outside 1 to 16.
    """

    config_name = "config.json"  # type: ignore[assignment]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        encoder_widths: Sequence[int] = (48, 96),
        encoder_blocks: Sequence[int] = (1, 3),
        decoder_widths: Sequence[int] = (64, 128),
        decoder_blocks: Sequence[int] = (2, 4),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        channels: int = 4,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if channels not in range(1, len(START) + 1):
            raise ValueError(f"channels: expected 1 to {len(START)}, got {channels!r}")
        self.encoder = Encoder(channels, encoder_widths, encoder_blocks)
        self.decoder = Decoder(channels, decoder_widths, decoder_blocks)

    def encode(self, images: Tensor) -> Moments:
        """Return the posterior of (N, 3, H, W) in [-1, 1], H and W divisible by 8: mean and logvar
        (in [-30, 20]), each (N, C, H / 8, W / 8).
        """
        mean, logvar = self.encoder(images).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (N, 3, 8 h, 8 w) of raw latents (N, C, h, w), approximately in [-1, 1], not
        clamped.
        """
        return cast(Tensor, self.decoder(latents))

    def forward(self, images: Tensor) -> Reconstruction:
        """Reconstruct images from one posterior draw, made with torch's global random numbers.
        Moments and draw are float32.
        """
        moments = self.encode(images)
        moments = Moments(moments.mean.float(), moments.logvar.float())
        latents = moments.mean + torch.exp(0.5 * moments.logvar) * torch.randn_like(moments.mean)
        return Reconstruction(output=self.decode(latents), latents=latents, moments=moments)


def zero_weights(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the layer's weight and bias to zero, and return it."""
    nn.init.zeros_(layer.weight)
    return zero_bias(layer)


def zero_bias(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the layer's bias to zero, and return it."""
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def initial_basis(channels: int) -> Tensor:
    """Return orthonormal functions on an 8 x 8 RGB patch, (C, 192), with values in the order of
    `pixel_unshuffle` (color, row, column).
    """
    place = (torch.arange(DOWNSCALE) + 0.5) * math.pi / DOWNSCALE
    waves = [
        torch.ones(DOWNSCALE),
        *(math.sqrt(2) * torch.cos(place * number) for number in range(1, DOWNSCALE)),
    ]
    patches = [
        torch.einsum(
            "c,i,j->cij", torch.tensor(color) / math.hypot(*color), waves[down], waves[across]
        )
        for color, down, across, _ in START[:channels]
    ]
    return torch.stack([patch.flatten() for patch in patches]) / DOWNSCALE


def initial_std(channels: int) -> Tensor:
    """Return the approximate standard deviation, (C,), of photographs' coefficients in
    `initial_basis`.
    """
    return torch.tensor([spread for *_, spread in START[:channels]])

"""The network of `series-kl`: a 1-D KL autoencoder, three strided convolutions each way."""

from __future__ import annotations

import torch
from latentkit.contracts import Moments, Reconstruction
from torch import Tensor, nn

DOWNSCALE = 8
LOGVAR_RANGE = (-30.0, 20.0)


class SeriesKL(nn.Module):
    """Series (N, channels, L) to a posterior (N, latent_channels, L / 8), and back.

    Parameters below `encoder` and `decoder` are what `train: encoder` and `train: decoder` train.
    """

    def __init__(self, channels: int, latent_channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(halve(channels, width), nn.SiLU()),
            *(halve(width, width), nn.SiLU()),
            *(halve(width, width), nn.SiLU()),
            nn.Conv1d(width, 2 * latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            *(nn.Conv1d(latent_channels, width, 1), nn.SiLU()),
            *(double(width, width), nn.SiLU()),
            *(double(width, width), nn.SiLU()),
            double(width, channels),
        )

    def encode(self, series: Tensor) -> Moments:
        """Return the posterior of series (N, channels, L), L divisible by 8."""
        mean, logvar = self.encoder(series).chunk(2, dim=1)
        return Moments(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents: Tensor) -> Tensor:
        """Return series of raw latents. Evaluations while training call this."""
        series: Tensor = self.decoder(latents)
        return series

    def forward(self, series: Tensor) -> Reconstruction:
        """Decode a draw of the posterior, made by torch's global generator."""
        moments = self.encode(series)
        noise = torch.randn_like(moments.mean)
        latents = moments.mean + torch.exp(0.5 * moments.logvar) * noise
        return Reconstruction(self.decode(latents), latents, moments)


def halve(channels: int, width: int) -> nn.Conv1d:
    """Return a layer that halves the length."""
    return nn.Conv1d(channels, width, 4, stride=2, padding=1)


def double(width: int, channels: int) -> nn.ConvTranspose1d:
    """Return a layer that doubles the length."""
    return nn.ConvTranspose1d(width, channels, 4, stride=2, padding=1)

"""The module one has already: a small convolutional autoencoder.

Nothing in it knows of latentkit.
"""

from __future__ import annotations

from torch import nn


class Autoencoder(nn.Module):
    """Images (N, 3, H, W) in [-1, 1] to means and log-variances, (N, 2 * 4, H / 8, W / 8), and
    (N, 4, H / 8, W / 8) back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 32, 4, stride=4), nn.SiLU(), nn.Conv2d(32, 2 * 4, 2, stride=2)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 32, 2, stride=2),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 3, 4, stride=4),
        )

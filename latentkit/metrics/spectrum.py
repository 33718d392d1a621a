"""Metric `latent-spectrum`: how the power of latents is spread over spatial frequencies.

White noise of variance v has power v at every frequency; latents in which high frequencies carry as
much as low ones are hard to diffuse.
"""

from __future__ import annotations

import numpy as np
import torch

from latentkit.contracts import Figure, Measured, MetricBatch, MetricSetting
from latentkit.errors import RecipeError
from latentkit.metrics.metric import Floats
from latentkit.runtime.device import to_float64

HIGHEST = 0.5
"""Cycles per latent; higher frequencies lie in the corners, outside the last whole ring."""


class LatentSpectrum:
    """Power |FFT|^2 / (h w) per channel, averaged over rings of frequencies and over samples,
    without the mean of each map.

    Args:
        num_bins: rings from 0 to half a cycle per latent; None: half the shorter side of the first
            latents.
    """

    def __init__(self, num_bins: int | None) -> None:
        self._num_bins = num_bins

    def start(self, setting: MetricSetting) -> None:
        if setting.layout.axes != "CHW":
            raise RecipeError(
                f"metric 'latent-spectrum' needs latents with axes CHW, got {setting.layout.axes};"
                " leave the metric out"
            )
        self._setting = setting
        self._power: Floats | None = None

    def add(self, batch: MetricBatch) -> None:
        latents = to_float64(batch.latents)
        power = torch.fft.fft2(latents, norm="ortho").abs().square().cpu().numpy()
        height, width = latents.shape[2:]
        if self._power is None:
            num_bins = self._num_bins or max(min(height, width) // 2, 1)
            self._power, self._counts, self._sums = (
                np.zeros((latents.shape[1], num_bins)),
                np.zeros(num_bins),
                np.zeros(num_bins),
            )
        num_bins = len(self._counts)
        frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
        rings = (
            np.ceil(frequencies / HIGHEST * num_bins - 1e-9).astype(int) - 1
        )  # a frequency on the border of two rings belongs to the lower ring
        inside = (rings >= 0) & (rings < num_bins)
        self._counts += len(latents) * np.bincount(rings[inside], minlength=num_bins)
        self._sums += len(latents) * np.bincount(rings[inside], frequencies[inside], num_bins)
        self._power += [
            np.bincount(rings[inside], channel[inside], num_bins) for channel in power.sum(axis=0)
        ]

    def finish(self) -> Measured:
        assert self._power is not None
        num_bins = len(self._counts)
        filled = self._counts > 0
        power = self._power[:, filled] / self._counts[filled]
        frequencies = self._sums[filled] / self._counts[filled]
        protocol = (
            f"|FFT|^2 / (h w) of raw latents ({self._setting.decoded_from}), rings of"
            f" {HIGHEST / num_bins:.3g} cycles per latent"
        )
        slope = _log_log_slope(frequencies, power.mean(axis=0))
        figures = {
            "slope": Figure(
                slope, "", f"of log power against log frequency, mean over channels; {protocol}"
            )
        }
        return Measured(figures, {}, {"frequencies": frequencies.tolist(), "power": power.tolist()})


def _log_log_slope(frequencies: Floats, power: Floats) -> float:
    """Return the fitted slope of log power against log frequency; 0 for one ring or no power."""
    if len(frequencies) < 2 or not (power > 0).all():
        return 0.0
    x, y = np.log(frequencies), np.log(power)
    return float(((x - x.mean()) * (y - y.mean())).sum() / np.square(x - x.mean()).sum())

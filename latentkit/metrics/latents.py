"""Metrics `latent-statistics` and `active-units`: statistics of raw latents, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from latentkit.contracts import Figure, Measured, MetricBatch, MetricSetting
from latentkit.errors import SourceError
from latentkit.metrics.metric import Floats
from latentkit.store.statistics import ChannelStatistics, measure, merge

HISTOGRAM_BINS = 128
ENOUGH_LATENTS = 10_000


class LatentStatistics:
    """Metric `latent-statistics`: mean and standard deviation per channel, and config fields."""

    def start(self, setting: MetricSetting) -> None:
        self._pieces: list[ChannelStatistics] = []
        self._histograms: dict[int, Histogram] = {}

    def add(self, batch: MetricBatch) -> None:
        latents = batch.latents.cpu().numpy()
        if batch.moments is None:
            self._pieces.append(measure(latents, None))
        else:
            self._pieces.append(
                measure(batch.moments.mean.cpu().numpy(), batch.moments.logvar.cpu().numpy())
            )
        for number, channel in enumerate(latents.swapaxes(0, 1)):
            values = channel[np.isfinite(channel)].astype(np.float64)
            if len(values):
                self._histograms.setdefault(number, Histogram(values)).add(values)

    def finish(self) -> Measured:
        statistics = merge(self._pieces)
        assert statistics is not None
        summary = statistics.summary()
        center = float(np.mean(summary["mean"]))
        spread = math.sqrt(
            float(
                np.mean(np.square(summary["std"]) + np.square(np.subtract(summary["mean"], center)))
            )
        )
        config = {
            "scaling_factor": 1 / spread if spread else None,
            "shift_factor": center,
            "latents_mean": summary["mean"],
            "latents_std": summary["std"],
        }
        protocol = (
            f"of all {statistics.count:,} raw values of each channel, float64; variance of a draw:"
            " Var[z] = Var[mean] + E[variance]"
        )
        figures = {
            "mean": Figure(center, "", f"of all channels together; {protocol}"),
            "std": Figure(spread, "", f"of all channels together; {protocol}"),
        }
        histograms = {
            str(number): histogram.as_json()
            for number, histogram in sorted(self._histograms.items())
        }
        few = statistics.count < ENOUGH_LATENTS
        warnings = (
            [
                f"latent-statistics: only {statistics.count:,} values per channel; 10,000 and more"
                " make them steady"
            ]
            if few
            else []
        )
        return Measured(
            figures,
            {},
            {"channels": summary, "model_config": config, "histograms": histograms},
            warnings,
        )


class Histogram:
    """Histogram of a channel's values; bins double their width until new values fit."""

    def __init__(self, values: Floats) -> None:
        low, high = float(values.min()), float(values.max())
        self._low, self._width = low, max((high - low) * 1.001, 1e-6) / HISTOGRAM_BINS
        self._counts = np.zeros(HISTOGRAM_BINS, np.int64)

    def add(self, values: Floats) -> None:
        """Add finite values, (n,) with n above 0."""
        while values.max() >= self._low + HISTOGRAM_BINS * self._width:
            self._widen(0)
        while values.min() < self._low:
            self._low -= HISTOGRAM_BINS * self._width
            self._widen(HISTOGRAM_BINS // 2)
        bins = ((values - self._low) / self._width).astype(np.int64).clip(0, HISTOGRAM_BINS - 1)
        self._counts += np.bincount(bins, minlength=HISTOGRAM_BINS)

    def _widen(self, start: int) -> None:
        """Merge pairs of bins; the merged counts begin at bin `start`, 0 or the middle."""
        pairs = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.zeros(HISTOGRAM_BINS, np.int64)
        self._counts[start : start + len(pairs)] = pairs
        self._width *= 2

    def as_json(self) -> dict[str, Any]:
        """Return lower edge, bin width and counts, without the empty bins at either end."""
        filled = np.flatnonzero(self._counts)
        first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, 0)
        return {
            "low": self._low + first * self._width,
            "width": self._width,
            "counts": self._counts[first : last + 1].tolist(),
        }


class ActiveUnits:
    """Latent values whose posterior mean varies with the input: Cov_x(E[z | x]) above a threshold.

    Y. Burda, R. Grosse and R. Salakhutdinov, "Importance Weighted Autoencoders" (2016), section 5.
    Without a posterior the latent itself is used.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def start(self, setting: MetricSetting) -> None:
        self._pieces: list[ChannelStatistics] = []
        self._shape: tuple[int, ...] = ()

    def add(self, batch: MetricBatch) -> None:
        means = batch.latents if batch.moments is None else batch.moments.mean
        self._shape = self._shape or tuple(means.shape[1:])
        if tuple(means.shape[1:]) != self._shape:
            shapes = " and ".join(
                "x".join(map(str, shape)) for shape in (self._shape, means.shape[1:])
            )
            raise SourceError(
                f"metric 'active-units' needs latents of one shape, got {shapes}; set the modality"
                " to one size, or leave the metric out"
            )
        # each value of a latent is a channel of its own here
        self._pieces.append(measure(means.cpu().flatten(1).numpy(), None))

    def finish(self) -> Measured:
        statistics = merge(self._pieces)
        assert statistics is not None
        active = (statistics.squares / statistics.count > self._threshold).reshape(self._shape)
        protocol = (
            f"latent values whose mean varies by more than {self._threshold:g} (variance) over"
            f" {statistics.count:,} samples"
        )
        share = "share of latent values; " + protocol
        figures = {
            "": Figure(float(active.sum()), f"of {active.size:,}", protocol),
            "share": Figure(float(active.mean()), "", share),
        }
        few = statistics.count < 2
        warnings = ["active-units: expected at least 2 samples, got 1"] if few else []
        return Measured(
            figures,
            {},
            {"by_channel": active.reshape(len(active), -1).sum(axis=1).tolist()},
            warnings,
        )

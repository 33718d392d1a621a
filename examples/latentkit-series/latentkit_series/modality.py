"""Modality `series`: .npy files (time, channels) to tensors (C, L), and tensors to plots."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from latentkit.contracts import InputSpec, Prepared, Sample
from latentkit.errors import RecipeError, SampleError
from PIL import Image, ImageDraw
from torch import Tensor

from latentkit_series.plugin import SeriesConfig

PLOT = (240, 80)
"""Pixels across and down of one plot."""
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")

Values = npt.NDArray[np.float32]


class SeriesModality:
    """Cuts a series to one length and scales it. Holds no state that changes: threads share it.

    Args:
        config: length, crop and scale.
        wanted: what the encoder takes.
        seed: of random crops.

    Raises:
        RecipeError: the encoder doesn't take that length.
    """

    metrics: Sequence[str] = ("psnr", "mse", "l1")

    def __init__(self, config: SeriesConfig, wanted: InputSpec, seed: int) -> None:
        rule = wanted.sizes.get("L")
        if rule is not None and not rule.allows(config.length):
            nearest = rule.nearest(config.length)
            got = f"got {config.length}; nearest: {nearest}"
            raise RecipeError(f"modality.with.length: the encoder takes {rule}, {got}")
        self._config, self._wanted, self._seed = config, wanted, seed

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """Yield the one view "plain", (C, length) float32 in the encoder's range.

        Raises:
            SampleError: the media is no series of finite numbers, too short, or of other channels.
            OSError: it can't be reached.
        """
        series, length = self._read(sample), self._config.length
        room = len(series) - length
        start = room // 2
        if self._config.crop == "random":  # in training the key holds the epoch: a new crop each
            start = random.Random(f"{self._seed} {sample.key}").randint(0, room)
        low, high = self._wanted.range
        unit = (series[start : start + length] / self._config.full_scale).clip(-1, 1)
        tensor = torch.from_numpy(low + (unit.T + 1) / 2 * (high - low)).contiguous()
        yield Prepared("plain", str(length), tensor, {"length": len(series), "start": start})

    def _read(self, sample: Sample) -> Values:
        """Return the series, (time, channels)."""
        try:
            values = np.load(io.BytesIO(sample.read()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise SampleError("not a .npy file") from error
        if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
            raise SampleError("not an array of numbers")
        series = values[:, None] if values.ndim == 1 else values
        channels, length = self._wanted.channels, self._config.length
        if series.ndim != 2 or series.shape[1] != channels:
            raise SampleError(f"shape {values.shape}, expected (time, channels) of {channels}")
        if len(series) < length:
            raise SampleError(f"{len(series)} values along time, expected at least {length}")
        if not np.isfinite(series).all():
            raise SampleError("holds values that are not finite")
        return series.astype(np.float32)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Draw a row of plots for each inner sequence, a line for each channel."""
        width, height = PLOT
        sheet = Image.new("RGB", (width * max(map(len, tensors)), height * len(tensors)), "white")
        draw = ImageDraw.Draw(sheet)
        for row, series in enumerate(tensors):
            for column, values in enumerate(series):
                self._plot(draw, values, column * width, row * height)
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)

    def _plot(self, draw: ImageDraw.ImageDraw, values: Tensor, left: int, top: int) -> None:
        (low, high), (width, height) = self._wanted.range, PLOT
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline="#dddddd")
        share = (values.detach().float().cpu().clamp(low, high) - low) / (high - low)
        across = torch.linspace(left + 4, left + width - 5, values.shape[-1]).tolist()
        for number, channel in enumerate(share):
            down = (top + 4 + (1 - channel) * (height - 9)).tolist()
            color = COLORS[number % len(COLORS)]
            draw.line(list(zip(across, down, strict=True)), fill=color)

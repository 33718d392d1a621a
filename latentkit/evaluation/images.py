"""Images of an evaluation: a few samples spread over the source, and the worst, each with its
reconstruction and their difference.
"""

from __future__ import annotations

import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from latentkit.evaluation.batches import Row

SHOWN_SIDE = 256
DIFFERENCE_GAIN = 4
CHANNELS = (1, 3, 4)


@dataclass(frozen=True, order=True)
class GallerySample:
    """One sample to look at. Of larger images the center is shown, pixel for pixel.

    Args:
        error: mean squared error on the scale of 8-bit images, by which the worst samples are
            found.
        images: PNG bytes of source, reconstruction, and difference (its absolute value, four
            times).
    """

    error: float
    position: int
    key: str
    view: str
    images: tuple[bytes, bytes, bytes]


class Gallery:
    """Keeps what will be shown.

    Args:
        count: samples to show, spread over the source, and as many of the worst; 0 keeps nothing.
        limits: lowest and highest value of the inputs.
        num_samples: samples in the source; None for a stream, whose first samples are shown.
        keep_tensors: whether `pairs` is needed.
    """

    def __init__(
        self,
        count: int,
        limits: tuple[float, float],
        num_samples: int | None = None,
        keep_tensors: bool = False,
    ) -> None:
        self._count, self._limits, self._keep_tensors = count, limits, keep_tensors
        last = max((num_samples or count) - 1, 0)
        self._wanted = {round(last * number / max(count - 1, 1)) for number in range(count)}
        self._spread: list[GallerySample] = []
        self._tensors: dict[int, list[Tensor]] = {}
        self._worst: list[tuple[float, int, GallerySample]] = []
        self.num_broken = 0
        """Reconstructions seen that were not finite."""

    def wants(self, rows: Sequence[Row]) -> bool:
        """Return whether any of the rows is one of those spread over the source."""
        return any(row.position in self._wanted for row in rows)

    def add(self, rows: Sequence[Row], inputs: Tensor, output: Tensor) -> None:
        """Add a batch, (N, C, H, W) each, or (N, C, T, H, W), whose middle frame or slice is kept.
        Anything else is ignored.
        """
        self.num_broken += int((~output.flatten(1).isfinite().all(1)).sum())
        if self._keep_tensors:
            kept = [
                (number, row.position)
                for number, row in enumerate(rows)
                if row.position in self._wanted
            ]
            self._tensors |= {
                position: [values[number].half().cpu() for values in (inputs, output)]
                for number, position in kept
            }
        if inputs.ndim == 5:
            inputs, output = (values[:, :, values.shape[2] // 2] for values in (inputs, output))
        if not self._count or inputs.ndim != 4 or inputs.shape[1] not in CHANNELS:
            return
        low, high = self._limits
        pixels = [
            ((values.float() - low) * (255 / (high - low))).clamp(0, 255).nan_to_num()
            for values in (inputs, output)
        ]
        errors = (pixels[0] - pixels[1]).square().flatten(1).mean(dim=1).tolist()
        for number, (row, error) in enumerate(zip(rows, errors, strict=True)):
            is_bad = len(self._worst) < self._count or error > self._worst[0][0]
            if row.position not in self._wanted and not is_bad:
                continue
            shown = GallerySample(
                error,
                row.position,
                row.key,
                row.view,
                draw_row(pixels[0][number], pixels[1][number]),
            )
            if row.position in self._wanted:
                self._spread.append(shown)
            if is_bad:
                heapq.heappush(self._worst, (error, -row.position, shown))
            if len(self._worst) > self._count:
                heapq.heappop(self._worst)

    @property
    def spread(self) -> list[GallerySample]:
        """Return the samples spread over the source, in its order."""
        return sorted(self._spread, key=lambda shown: shown.position)

    @property
    def pairs(self) -> list[list[Tensor]]:
        """Return the samples spread over the source with their reconstructions: (C, ...) float16,
        CPU.
        """
        return [self._tensors[position] for position in sorted(self._tensors)]

    @property
    def worst(self) -> list[GallerySample]:
        """Return the worst samples, the worst first."""
        return [entry[2] for entry in sorted(self._worst, reverse=True)]


def draw_row(source: Tensor, output: Tensor) -> tuple[bytes, bytes, bytes]:
    """Return PNG bytes of two images (C, H, W) in [0, 255] and of their absolute difference, four
    times. Alpha is left out.
    """
    pair = [_middle(values).cpu() for values in (source, output)]
    difference = (DIFFERENCE_GAIN * (pair[0] - pair[1]).abs()).clamp(max=255)
    images = [_png(values[:3]) for values in (*pair, difference)]
    return images[0], images[1], images[2]


def _middle(values: Tensor) -> Tensor:
    top, left = (max(size - SHOWN_SIDE, 0) // 2 for size in values.shape[1:])
    return values[:, top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]


def _png(values: Tensor) -> bytes:
    """Return PNG bytes of an image (C, H, W) in [0, 255]."""
    pixels: npt.NDArray[np.uint8] = values.round().to(torch.uint8).permute(1, 2, 0).numpy()
    image = Image.fromarray(
        np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    )
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def save_grid(gallery: Gallery, path: Path) -> None:
    """Write one PNG to `path` with a sample in each row: source, reconstruction, difference.
    Without images nothing is written.
    """
    rows = [
        [Image.open(io.BytesIO(image)).convert("RGB") for image in shown.images]
        for shown in gallery.spread
    ]
    if not rows:
        return
    heights = [max(image.height for image in row) for row in rows]
    grid = Image.new("RGB", (max(sum(image.width for image in row) for row in rows), sum(heights)))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            grid.paste(image, (left, top))
            left += image.width
        top += height
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)

"""Writes rows as audio or images for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from torch import Tensor

from latentkit_audio.forward import Frames

PAUSE_SECONDS = 0.25
"""Silence between the tensors of one row."""
ROW_PAUSE_SECONDS = 0.75
"""Silence between rows."""

GAP_PIXELS = 4
BIN_PIXELS = 3
"""Height of a mel bin; a frame is one pixel wide."""
GAP_LEVEL = 255


def write_audio(rows: Sequence[Sequence[Tensor]], path: Path, rate_hz: int) -> None:
    """Write one 16-bit wav file with all audio one after the other.

    Args:
        rows: (C, L) float32 from -1 to 1 each, all with the same C; other values are clipped.
        path: file to write, whatever its ending.
        rate_hz: sample rate.
    """
    channels = rows[0][0].shape[0]
    pieces: list[Frames] = []
    for row in rows:
        for place, sound in enumerate(row):
            seconds = 0.0 if not pieces else ROW_PAUSE_SECONDS if place == 0 else PAUSE_SECONDS
            pieces += [
                np.zeros((round(seconds * rate_hz), channels), np.float32),
                sound.clamp(-1, 1).numpy().T,
            ]
    soundfile.write(path, np.concatenate(pieces), rate_hz, format="WAV", subtype="PCM_16")


def write_spectrograms(rows: Sequence[Sequence[Tensor]], path: Path) -> None:
    """Write a gray PNG: one row of spectrograms per inner sequence, channels below each other, time
    to the right, high bins on top.

    Args:
        rows: (C, T, M) float32 each; black is the lowest value of all, white the highest.
        path: file to write, whatever its ending.
    """
    low = min(float(mel.min()) for row in rows for mel in row)
    high = max(float(mel.max()) for row in rows for mel in row)
    scale = 255 / (high - low) if high > low else 0.0
    images = [[_to_levels((mel - low) * scale) for mel in row] for row in rows]
    width = (
        max(sum(image.shape[1] + GAP_PIXELS for image in row) for row in images) + GAP_PIXELS
    )
    height = (
        sum(max(image.shape[0] for image in row) + GAP_PIXELS for row in images) + GAP_PIXELS
    )
    sheet = np.full((height, width), GAP_LEVEL, np.uint8)
    top = GAP_PIXELS
    for row in images:
        left = GAP_PIXELS
        for image in row:
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
            left += image.shape[1] + GAP_PIXELS
        top += max(image.shape[0] for image in row) + GAP_PIXELS
    Image.fromarray(sheet).save(path, format="PNG")


def _to_levels(mel: Tensor) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return a (C, T, M) spectrogram as (height, width) levels from 0 to 255."""
    bins_up = mel.clamp(0, 255).round().numpy().astype(np.uint8).transpose(0, 2, 1)[:, ::-1]
    channels = [np.repeat(channel, BIN_PIXELS, axis=0) for channel in bins_up]
    gap = np.full((GAP_PIXELS, mel.shape[1]), GAP_LEVEL, np.uint8)
    parts = [part for channel in channels for part in (gap, channel)][1:]
    return np.concatenate(parts)

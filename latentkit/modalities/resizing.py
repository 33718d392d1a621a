"""Resize one decoded picture, in the way that the recipe names, to as many crops as it wants."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from latentkit.modalities.geometry import Box, Shape, Shrink
from latentkit.modalities.lanczos import resize_levels
from latentkit.runtime.buffers import BufferPool

Levels = np.ndarray[Any, np.dtype[Any]]
"""Whole numbers from 0 to 255, uint8 or float32; of a result (C, H, W)."""

LINES = {"L": "L", "RGB": "RGB;L", "RGBA": "RGBA;L"}
"""Pillow's name for the pixels of a mode line by line, in each line channel after channel."""


class Resizer:
    """One picture, whose pixels are laid out once for all its crops.

    Args:
        picture: "L", "RGB" or "RGBA", which Pillow resizes; or (H, W, C) levels, resized here.
        shrink: how it was made smaller while it was decoded.
        memory: for what is resized here.
    """

    def __init__(self, picture: Image.Image | Levels, shrink: Shrink, memory: BufferPool) -> None:
        self._picture = picture
        self._shrink = shrink
        self._memory = memory

    @property
    def shape(self) -> Shape:
        """(height, width) of the decoded picture."""
        if isinstance(self._picture, Image.Image):
            return self._picture.height, self._picture.width
        return self._picture.shape[0], self._picture.shape[1]

    def resize(self, box: Box, shape: Shape) -> Levels:
        """A part of the original, in pixels of the original, at (height, width) `shape`."""
        if not isinstance(self._picture, Image.Image):
            return resize_levels(self._picture, box.shrunk(self._shrink), shape, self._memory)
        resized = self._picture.resize(
            (shape[1], shape[0]), Image.Resampling.LANCZOS, box=box.edges()
        )
        lines = np.frombuffer(resized.tobytes("raw", LINES[resized.mode]), np.uint8)
        return lines.reshape(shape[0], -1, shape[1]).transpose(1, 0, 2)

"""Resizes a decoded image to any number of crops, with the method that the recipe names."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from latentkit.modalities.geometry import Box, Shape, Shrink
from latentkit.modalities.lanczos import resize_levels
from latentkit.runtime.buffers import BufferPool

Levels = np.ndarray[Any, np.dtype[Any]]
"""Whole numbers from 0 to 255, uint8 or float32; a result is (C, H, W)."""

LINES = {"L": "L", "RGB": "RGB;L", "RGBA": "RGBA;L"}
"""Pillow's name of a mode's pixels line by line, with one channel after the other in each line."""


class Resizer:
    """One image, whose pixels are laid out once for all its crops.

    Args:
        image: image of mode "L", "RGB" or "RGBA".
        way: value of the option `resize` of `ImageConfig`.
        shrink: how the image was made smaller while it was decoded.
    """

    def __init__(self, image: Image.Image | Levels, shrink: Shrink, memory: BufferPool) -> None:
        self._image = image
        self._shrink = shrink
        self._memory = memory

    @property
    def shape(self) -> Shape:
        """(height, width) of the decoded image."""
        if isinstance(self._image, Image.Image):
            return self._image.height, self._image.width
        return self._image.shape[0], self._image.shape[1]

    def resize(self, box: Box, shape: Shape) -> Levels:
        """Resize a part of the image (`box`, in pixels of the original) to (height, width)
        `shape`.
        """
        if not isinstance(self._image, Image.Image):
            return resize_levels(self._image, box.shrunk(self._shrink), shape, self._memory)
        resized = self._image.resize(
            (shape[1], shape[0]), Image.Resampling.LANCZOS, box=box.edges()
        )
        lines = np.frombuffer(resized.tobytes("raw", LINES[resized.mode]), np.uint8)
        return lines.reshape(shape[0], -1, shape[1]).transpose(1, 0, 2)

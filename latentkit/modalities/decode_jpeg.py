"""Decodes JPEGs to an array without an image of Pillow's in between, which would cost two copies.
It uses simplejpeg if that is installed. Both have the same libjpeg-turbo inside, so every level is
equal.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
from PIL import Image

from latentkit.runtime.buffers import BufferPool

Levels = np.ndarray[Any, np.dtype[np.uint8]]

COLOR_SPACES = {"L": "GRAY", "RGB": "RGB"}


@functools.cache
def find_decoder() -> Any:
    """Return the module simplejpeg; None if it isn't installed, because some systems have no wheel.
    """
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def decode_jpeg(
    image: Image.Image, media: bytes, mode: str, memory: BufferPool
) -> Levels | None:
    """Return the (H, W, C) levels of a JPEG as stored, not turned upright. Return None if Pillow
    has
    to decode the file: other formats, other kinds of color, and broken files, for Pillow's error.

    Args:
        image: Pillow's image, of which only the header is read.
        media: the file's bytes.
        mode: "L" or "RGB", the channels to return.
        memory: pool for the levels.
    """
    decoder = find_decoder()
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode == mode
    if decoder is None or not is_jpeg or mode not in COLOR_SPACES:
        return None
    try:
        height, width, *_ = decoder.decode_jpeg_header(media)
        if (width, height) != image.size:
            return None
        room = memory.get((height, width, len(mode)), np.uint8)
        levels: Levels = decoder.decode_jpeg(media, COLOR_SPACES[mode], buffer=room)
    except ValueError:
        return None
    return levels

"""JPEGs to an array without Pillow's picture in between, which would have to be filled and emptied:
by simplejpeg, where that is installed. It has the same libjpeg-turbo inside, so every level is the
one that Pillow gives.
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
    """The module simplejpeg; None where it is not installed, as where it has no wheel."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def decode_jpeg(
    picture: Image.Image, media: bytes, mode: str, memory: BufferPool
) -> Levels | None:
    """(H, W, C) levels of a JPEG as they lie in the file; None where Pillow has to decode it: other
    formats, other kinds of color, and whatever is broken, for Pillow's opinion of it.

    Args:
        picture: what Pillow made of the header.
        media: the file.
        mode: "L" or "RGB": channels wanted.
        memory: of which the levels are.
    """
    decoder = find_decoder()
    is_jpeg = picture.format in ("JPEG", "MPO") and picture.mode == mode
    if decoder is None or not is_jpeg or mode not in COLOR_SPACES:
        return None
    try:
        height, width, *_ = decoder.decode_jpeg_header(media)
        if (width, height) != picture.size:
            return None
        room = memory.get((height, width, len(mode)), np.uint8)
        levels: Levels = decoder.decode_jpeg(media, COLOR_SPACES[mode], buffer=room)
    except ValueError:
        return None
    return levels

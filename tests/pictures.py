"""Pictures that are drawn, not found."""

from __future__ import annotations

import numpy as np
from PIL import Image

SIDE = 48


def draw_picture(number: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """A smooth picture that differs from every other number's."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = number * 0.7
    channels = [
        127.5 + 127 * np.sin(rows / (5 + c) + columns / (7 - c) + phase * (c + 1)) for c in range(3)
    ]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))

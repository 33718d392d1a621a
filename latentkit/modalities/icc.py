"""ICC profiles: converts a file's colors to sRGB, and writes profiles for files that describe
colors in another way.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

Point = tuple[float, float]

COLOR_SPACE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}

D65: Point = (0.3127, 0.3290)
SRGB_PRIMARIES: tuple[Point, ...] = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE_RGB_PRIMARIES: tuple[Point, ...] = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
ADOBE_RGB_EXPONENT = 563 / 256

SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
"""IEC 61966-2-1 as g, a, b, c, d of ICC.1:2010's function 3: (a v + b) ** g from d upward, c v
below.
"""

# ICC.1:2010, E.4: white of the connection space, and the Bradford adaptation to it.
D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)


@lru_cache(maxsize=64)
def make_profile(
    primaries: tuple[Point, ...] = SRGB_PRIMARIES,
    white: Point = D65,
    curve: float | tuple[float, ...] = SRGB_CURVE,
) -> bytes:
    """Return an ICC profile (version 4.2) of RGB colors.

    Args:
        primaries: x and y of red, green and blue (CIE 1931).
        white: x and y of equal parts of the primaries.
        curve: exponent that converts values to light, or g, a, b, c, d as in `SRGB_CURVE`.

    Raises:
        ValueError: the primaries are on one line, or a y isn't positive.
    """
    columns = np.array([_to_xyz(point) for point in primaries]).T
    try:
        scale = np.linalg.solve(columns, _to_xyz(white))
    except np.linalg.LinAlgError as err:
        raise ValueError(f"primaries {primaries} span no colors") from err
    adapt = np.diag((BRADFORD @ D50) / (BRADFORD @ _to_xyz(white)))
    matrix = np.linalg.inv(BRADFORD) @ adapt @ BRADFORD @ columns @ np.diag(scale)
    numbers = (curve,) if isinstance(curve, float) else curve
    shape = b"para" + struct.pack(">4xHxx", 0 if len(numbers) == 1 else 3) + _pack_fixed(numbers)
    points = [b"XYZ " + bytes(4) + _pack_fixed(column) for column in (D50, *matrix.T)]
    tags = dict(zip((b"wtpt", b"rXYZ", b"gXYZ", b"bXYZ"), points, strict=True))
    return _pack_profile(tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), shape))


def _to_xyz(point: Point) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Convert x and y of a color to XYZ with Y = 1."""
    x, y = point
    if y <= 0:
        raise ValueError(f"a color with y = {y} has no brightness")
    return np.array([x / y, 1.0, (1 - x - y) / y])


def _pack_fixed(numbers: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]]) -> bytes:
    """Encode numbers as s15Fixed16Number."""
    try:
        return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))
    except struct.error as err:
        raise ValueError(f"{list(numbers)} do not fit a profile") from err


def _pack_profile(tags: dict[bytes, bytes]) -> bytes:
    """Encode a display profile from RGB to XYZ (ICC.1:2010, section 7)."""
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content
    size = 128 + len(table) + len(body)
    kinds = b"mntr" + b"RGB " + b"XYZ "
    head = struct.pack(">I4xI12s12x4s28x", size, 0x04200000, kinds, b"acsp") + _pack_fixed(D50)
    return head.ljust(128, b"\0") + table + body


def to_srgb(colors: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an "L", "RGB" or "CMYK" image to sRGB ("L" or "RGB"). A profile that is broken or for
    another kind of color is ignored.
    """
    transform = _srgb_transform(profile) if profile else None
    if transform is not None:
        if transform.input_mode == "RGB" and colors.mode == "L":
            colors = colors.convert("RGB")
        if transform.input_mode == colors.mode:
            return ImageCms.applyTransform(colors, transform) or colors
    return colors.convert("RGB") if colors.mode == "CMYK" else colors


def is_srgb(profile: bytes | None) -> bool:
    """Return whether a file's colors are sRGB, or so close to it that `to_srgb` doesn't change an
    "L" or "RGB" image.
    """
    return not profile or _srgb_transform(profile) is None


@lru_cache(maxsize=64)
def _srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from a profile's colors to sRGB; None if the profile is broken or
    already sRGB.

    Threads may share it.
    """
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = COLOR_SPACE_MODES.get(opened.profile.xcolor_space)
        if mode is None:
            return None
        transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    return None if mode == "RGB" and _is_nearly_srgb(transform) else transform


def _is_nearly_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether no color of a 6 x 6 x 6 grid changes by more than one level. Then the profile
    is a variant of sRGB and isn't worth converting.
    """
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(
        6, 36, 3
    )
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(lattice), transform))
    return int(np.abs(moved.astype(np.int16) - lattice).max()) <= 1

"""The bytes of a picture file to an upright 8-bit sRGB picture: everything Pillow has to be told,
and nothing about sizes or views.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from latentkit.errors import SampleError
from latentkit.modalities.decode_jpeg import decode_jpeg
from latentkit.modalities.geometry import Shrink
from latentkit.modalities.icc import is_srgb, to_srgb
from latentkit.modalities.image_formats import (
    CONTENT_ERRORS,
    JXL_SIGNATURES,
    describe_unread,
    read_jxl_header,
)
from latentkit.modalities.image_headers import complete_header
from latentkit.modalities.tiff_kinds import gray_levels
from latentkit.runtime.buffers import BufferPool

# What undoes each value of the EXIF tag; 0, 1 and anything unknown are upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

UPRIGHT_LEVELS: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    2: lambda levels: levels[:, ::-1],
    3: lambda levels: levels[::-1, ::-1],
    4: lambda levels: levels[::-1],
    5: lambda levels: levels.swapaxes(0, 1),
    6: lambda levels: levels.swapaxes(0, 1)[:, ::-1],
    7: lambda levels: levels.swapaxes(0, 1)[::-1, ::-1],
    8: lambda levels: levels.swapaxes(0, 1)[::-1],
}
"""The same of (H, W, C) levels."""

# Orientations that are stored from the bottom up, and from the right to the left, as the upright
# picture has them.
BOTTOM_FIRST, RIGHT_FIRST = (3, 4, 7, 8), (2, 3, 6, 7)


FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "JXL")
"""Formats with frames or pages; the further ones of MPO are previews and depths as a rule."""
MORE_FRAMES = "of a picture with several frames or pages, of which the first is used"


_pillow_limit_lock = threading.Lock()


@contextmanager
def _as_sample_error() -> Iterator[None]:
    """Turn what Pillow raises into a `SampleError` whose text is the same in every run."""
    try:
        yield
    except CONTENT_ERRORS as err:
        text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(err)) or type(err).__name__
        raise SampleError(f"broken picture: {text}") from err


def open_picture(media: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    """A picture whose header is read and whose pixels, as a rule, are not.

    Raises:
        SampleError: not a picture of these formats, one with more than `max_pixels` pixels, or of a
            kind that would come out wrong.
    """
    if not media:
        raise SampleError("empty file: 0 bytes")
    if "JXL" in formats and media.startswith(JXL_SIGNATURES):  # decoded as soon as it is opened
        _check_size(*read_jxl_header(media)[:2], max_pixels)
    with _as_sample_error():
        picture = _open_within_limit(media, formats, max_pixels)
        complete_header(picture, media)
    return picture


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise SampleError(f"{width} x {height} pixels, more than max_pixels allows ({max_pixels})")


def _open_within_limit(media: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    # Pillow's limit is one for the whole process and warns at half of what it refuses, so ours
    # stands in for it while a header is read.
    with _pillow_limit_lock:
        pillow_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            picture = Image.open(io.BytesIO(media), formats=formats)
            _check_size(picture.width, picture.height, max_pixels)
            if pillow_limit is not None and picture.width * picture.height > pillow_limit:
                picture.load()  # some formats look at the limit once more here
        except UnidentifiedImageError as err:
            raise SampleError(describe_unread(media, formats)) from err
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
    return picture


def decode_picture(
    picture: Image.Image, mode: str, background: tuple[int, int, int]
) -> Image.Image:
    """The first frame of an opened picture: upright, in sRGB, 8 bits a channel.

    Args:
        picture: as `open_picture` gives it.
        mode: Pillow's name of the channels wanted: "L", "RGB" or "RGBA".
        background: red, green, blue from 0 to 255 behind transparent parts; not used for "RGBA".

    Raises:
        SampleError: truncated or broken, or of a kind without a defined white.
    """
    with _as_sample_error():
        picture.load()
        levels = (
            gray_levels(picture)
            if isinstance(picture, TiffImagePlugin.TiffImageFile)
            else (0, 65535)
        )
        picture = _turn_upright(picture)
        profile = picture.info.get("icc_profile")
        if picture.mode.startswith("I"):
            picture = _to_8_bits(picture, *levels)
        elif picture.mode == "F":
            raise SampleError(
                "floating-point pixels, whose white is not defined; convert the file to 8 or 16"
                " bits"
            )
        is_gray = picture.mode in ("1", "L", "LA", "La")
        alpha = None
        if picture.has_transparency_data:
            # Pillow has no way from "La" to any mode but "LA".
            picture = _convert(_convert(picture, "LA") if picture.mode == "La" else picture, "RGBA")
            alpha = picture.getchannel("A")
        colors = _convert(picture, "L" if is_gray else "CMYK" if picture.mode == "CMYK" else "RGB")
        return _blend(to_srgb(colors, profile), alpha, mode, background)


def decode_levels(
    picture: Image.Image,
    media: bytes,
    mode: str,
    background: tuple[int, int, int],
    memory: BufferPool,
) -> npt.NDArray[np.uint8]:
    """(H, W, C) levels of what `decode_picture` gives, sooner where that can be.

    Args:
        media: the file, of which the header was read.
        picture, mode, background: as for `decode_picture`.
        memory: of which they are, where it is not Pillow that decodes.

    Raises:
        SampleError: as `decode_picture`.
    """
    if is_srgb(picture.info.get("icc_profile")):
        levels = decode_jpeg(picture, media, mode, memory)
        if levels is not None:
            turn = UPRIGHT_LEVELS.get(_orientation(picture))
            return levels if turn is None else _copy(turn(levels), memory)
    picture = decode_picture(picture, mode, background)
    return np.asarray(picture).reshape(picture.height, picture.width, -1)


def _copy(levels: npt.NDArray[np.uint8], memory: BufferPool) -> npt.NDArray[np.uint8]:
    copied = memory.get(levels.shape, np.uint8)
    np.copyto(copied, levels)
    return copied


def upright_shape(picture: Image.Image) -> tuple[int, int]:
    """(height, width) that a JPEG will have once it is decoded and upright."""
    is_turned = _orientation(picture) in (5, 6, 7, 8)
    return (picture.width, picture.height) if is_turned else (picture.height, picture.width)


def shrink_on_load(picture: Image.Image, factor: float) -> Shrink:
    """Have an opened JPEG decoded smaller, where at least twice the pixels that are needed remain.

    Args:
        picture: not decoded yet.
        factor: pixels of the picture for a pixel of the result, along the axis that has fewer.
    """
    divisor = next((number for number in (8, 4, 2) if factor >= 2 * number), 1)
    if picture.format not in ("JPEG", "MPO") or divisor == 1:
        return Shrink()
    height, width = upright_shape(picture)
    drafted = picture.draft(None, (picture.width // divisor, picture.height // divisor))
    if drafted is None:
        return Shrink()
    orientation = _orientation(picture)
    top = -height / divisor % 1 if orientation in BOTTOM_FIRST else 0.0
    return Shrink(divisor, top, -width / divisor % 1 if orientation in RIGHT_FIRST else 0.0)


def frame_remarks(picture: Image.Image) -> list[str]:
    """Say of an opened picture that it has more frames or pages than the first, which is used."""
    if picture.format not in FRAMED:
        return []
    try:
        return [MORE_FRAMES] * (getattr(picture, "n_frames", 1) > 1)
    except CONTENT_ERRORS:
        return []


def _turn_upright(picture: Image.Image) -> Image.Image:
    """Turn a picture as its EXIF orientation says; broken EXIF data counts for nothing."""
    # Not ImageOps.exif_transpose: it refuses good pixels for bad EXIF data, which it also writes
    # again.
    method = UPRIGHT.get(_orientation(picture))
    return picture if method is None else picture.transpose(method)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except CONTENT_ERRORS:
        return 1


def _convert(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in another mode; itself where it has that mode, since Pillow would copy it."""
    return picture if picture.mode == mode else picture.convert(mode)


def _to_8_bits(picture: Image.Image, black: int, white: int) -> Image.Image:
    """Gray of more bits to 8, rounded to the nearest: "L", or "LA" where a value of it is
    transparent.

    Args:
        picture: of mode "I" or one of the modes "I;16".
        black: value that becomes 0.
        white: value that becomes 255; below `black` where the file counts ink.
    """
    values = np.asarray(picture)
    limit = max(black, white)
    if limit > 0x7FFFFFFF:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > limit:
        raise SampleError(
            f"gray values from {low} to {high}, whose white is not defined; expected 0 to {limit}"
        )
    if limit > 65535 and high <= 65535:
        raise SampleError(
            f"gray values of 32 bits up to {high}, where white is {limit}; convert the file to 8 or"
            " 16 bits"
        )
    # 65535 * 255 fits 32 bits; in place, as pictures of 16 bits are large.
    levels: npt.NDArray[np.int32 | np.int64] = values.astype(
        np.int64 if limit > 65535 else np.int32
    )
    levels -= black
    np.abs(levels, out=levels)
    levels *= 255
    levels += limit // 2
    levels //= limit
    gray = Image.fromarray(levels.astype(np.uint8))
    key = picture.info.get("transparency")
    if key is None:
        return gray
    return Image.merge(
        "LA", (gray, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    )


def _blend(
    colors: Image.Image, alpha: Image.Image | None, mode: str, background: tuple[int, int, int]
) -> Image.Image:
    """Return colors in the mode wanted, over `background` where that has no alpha."""
    if alpha is not None and mode == "RGBA":
        colors = colors.convert("RGB")
        colors.putalpha(alpha)
    elif alpha is not None:
        canvas = Image.new("RGB", colors.size, background)
        canvas.paste(colors, mask=alpha)
        colors = canvas
    return _convert(colors, mode)

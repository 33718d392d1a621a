"""Decodes the bytes of an image file to an upright 8-bit sRGB image. It handles all details of
Pillow and of image formats, but not sizes or views.
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
    explain_unsupported,
    read_jxl_header,
)
from latentkit.modalities.image_headers import complete_header
from latentkit.modalities.tiff_kinds import gray_levels
from latentkit.runtime.buffers import BufferPool

# The operation that undoes each value of the EXIF tag; 0, 1 and unknown values are upright.
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
"""The same for arrays of (H, W, C) levels."""

# Orientations that are stored from the bottom up, and from the right to the left, as the upright
# image has them.
BOTTOM_FIRST, RIGHT_FIRST = (3, 4, 7, 8), (2, 3, 6, 7)


FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF", "JXL")
"""Formats with frames or pages. MPO isn't one: its further frames usually are previews and depths.
"""
MORE_FRAMES = "images with several frames or pages, of which only the first is used"


_pillow_limit_lock = threading.Lock()


@contextmanager
def _as_sample_error() -> Iterator[None]:
    """Turn Pillow's errors into a `SampleError` whose text is the same in every run."""
    try:
        yield
    except CONTENT_ERRORS as err:
        text = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "the file", str(err)) or type(err).__name__
        raise SampleError(f"broken image: {text}") from err


def open_image(media: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    """Open an image: its header is read, and usually not its pixels.

    Raises:
        SampleError: the file isn't an image in these formats, has more than `max_pixels` pixels,
            or is of a kind that would be decoded wrongly.
    """
    if not media:
        raise SampleError("empty file: 0 bytes")
    if "JXL" in formats and media.startswith(JXL_SIGNATURES):  # decoded as soon as it is opened
        _check_size(*read_jxl_header(media)[:2], max_pixels)
    with _as_sample_error():
        image = _open_within_limit(media, formats, max_pixels)
        complete_header(image, media)
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    """Check that an image has at most `max_pixels` pixels."""
    if width * height > max_pixels:
        raise SampleError(f"{width} x {height} pixels, more than max_pixels allows ({max_pixels})")


def _open_within_limit(media: bytes, formats: list[str], max_pixels: int) -> Image.Image:
    """Open an image with Pillow's own pixel limit switched off."""
    # Pillow's limit is one for the whole process and warns at half of what it refuses, so ours
    # stands in for it while a header is read.
    with _pillow_limit_lock:
        pillow_limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            image = Image.open(io.BytesIO(media), formats=formats)
            _check_size(image.width, image.height, max_pixels)
            if pillow_limit is not None and image.width * image.height > pillow_limit:
                image.load()  # some formats check the limit again here
        except UnidentifiedImageError as err:
            raise SampleError(explain_unsupported(media, formats)) from err
        finally:
            Image.MAX_IMAGE_PIXELS = pillow_limit
    return image


def decode_upright(image: Image.Image, mode: str, background: tuple[int, int, int]) -> Image.Image:
    """Return the first frame of an opened image: upright, in sRGB, 8 bits per channel.

    Args:
        image: an image from `open_image`.
        mode: Pillow's name of the channels to return: "L", "RGB" or "RGBA".
        background: red, green, blue from 0 to 255 behind transparent parts; not used for "RGBA".

    Raises:
        SampleError: the image is truncated or broken, or the value of white is unknown.
    """
    with _as_sample_error():
        image.load()
        black, white = (
            gray_levels(image) if isinstance(image, TiffImagePlugin.TiffImageFile) else (0, 65535)
        )
        image = _turn_upright(image)
        profile = image.info.get("icc_profile")
        if image.mode.startswith("I"):
            image = _to_8_bits(image, black, white)
        elif image.mode == "F":
            raise SampleError(
                "floating-point pixels, so it is unknown which value is white; convert the file to"
                " 8 or 16 bits"
            )
        is_gray = image.mode in ("1", "L", "LA", "La")
        alpha = None
        if image.has_transparency_data:
            if image.mode == "La":
                image = image.convert("LA")  # Pillow converts "La" to nothing else
            image = _convert(image, "RGBA")
            alpha = image.getchannel("A")
        colors = _convert(image, "L" if is_gray else "CMYK" if image.mode == "CMYK" else "RGB")
        return _blend(to_srgb(colors, profile), alpha, mode, background)


def decode_levels(
    image: Image.Image,
    media: bytes,
    mode: str,
    background: tuple[int, int, int],
    memory: BufferPool,
) -> npt.NDArray[np.uint8]:
    """Return the (H, W, C) levels of `decode_upright`'s image, with a faster decoder if possible.

    Args:
        media: the file's bytes.
        image, mode, background: as for `decode_upright`.
        memory: pool for the levels, if Pillow doesn't decode.

    Raises:
        SampleError: as `decode_upright`.
    """
    if is_srgb(image.info.get("icc_profile")):
        levels = decode_jpeg(image, media, mode, memory)
        if levels is not None:
            turn = UPRIGHT_LEVELS.get(_orientation(image))
            return levels if turn is None else _copy(turn(levels), memory)
    image = decode_upright(image, mode, background)
    return np.asarray(image).reshape(image.height, image.width, -1)


def _copy(levels: npt.NDArray[np.uint8], memory: BufferPool) -> npt.NDArray[np.uint8]:
    copied = memory.get(levels.shape, np.uint8)
    np.copyto(copied, levels)
    return copied


def upright_shape(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) of a JPEG after it is decoded and upright."""
    is_turned = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if is_turned else (image.height, image.width)


def shrink_on_load(image: Image.Image, factor: float) -> Shrink:
    """Have an opened JPEG decoded at a smaller size if that keeps at least twice the pixels that
    are needed.

    Args:
        image: image that is not decoded yet.
        factor: image pixels per pixel of the result, along the axis with the smaller factor.
    """
    divisor = next((number for number in (8, 4, 2) if factor >= 2 * number), 1)
    if image.format not in ("JPEG", "MPO") or divisor == 1:
        return Shrink()
    height, width = upright_shape(image)
    drafted = image.draft(None, (image.width // divisor, image.height // divisor))
    if drafted is None:
        return Shrink()
    orientation = _orientation(image)
    top = -height / divisor % 1 if orientation in BOTTOM_FIRST else 0.0
    return Shrink(divisor, top, -width / divisor % 1 if orientation in RIGHT_FIRST else 0.0)


def frame_remarks(image: Image.Image) -> list[str]:
    """Return a remark if an opened image has more frames or pages than the first, which is used."""
    if image.format not in FRAMED:
        return []
    try:
        return [MORE_FRAMES] * (getattr(image, "n_frames", 1) > 1)
    except CONTENT_ERRORS:
        return []


def _turn_upright(image: Image.Image) -> Image.Image:
    """Turn a decoded image by its EXIF orientation. Broken EXIF data is ignored, as in image
    viewers.
    """
    # Not ImageOps.exif_transpose: it refuses good pixels for bad EXIF data, which it also writes
    # again.
    method = UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation from 1 to 8."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except CONTENT_ERRORS:
        return 1


def _convert(image: Image.Image, mode: str) -> Image.Image:
    """Convert the image to a mode. It is returned unchanged if it has that mode, because Pillow
    would copy it.
    """
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image, black: int, white: int) -> Image.Image:
    """Convert gray with more bits to 8 bits, rounded to nearest: "L", or "LA" if one gray value is
    transparent.

    Args:
        image: image of mode "I" or one of the modes "I;16".
        black: value that becomes 0.
        white: value that becomes 255; below `black` if the file counts ink.
    """
    values = np.asarray(image)
    limit = max(black, white)
    if limit > 0x7FFFFFFF:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > limit:
        raise SampleError(
            f"gray values from {low} to {high}, so it is unknown which value is white; expected 0"
            f" to {limit}"
        )
    if limit > 65535 and high <= 65535:
        raise SampleError(
            f"gray values of 32 bits up to {high}, where white is {limit}; convert the file to 8 or"
            " 16 bits"
        )
    # 65535 * 255 fits into 32 bits; in place, because 16-bit images are large.
    levels: npt.NDArray[np.int32 | np.int64] = values.astype(
        np.int64 if limit > 65535 else np.int32
    )
    levels -= black
    np.abs(levels, out=levels)
    levels *= 255
    levels += limit // 2
    levels //= limit
    gray = Image.fromarray(levels.astype(np.uint8))
    key = image.info.get("transparency")
    if key is None:
        return gray
    return Image.merge(
        "LA", (gray, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    )


def _blend(
    colors: Image.Image, alpha: Image.Image | None, mode: str, background: tuple[int, int, int]
) -> Image.Image:
    """Return colors and their opacity in the wanted mode, over `background` if that mode has no
    alpha.
    """
    if alpha is not None and mode == "RGBA":
        colors = colors.convert("RGB")
        colors.putalpha(alpha)
    elif alpha is not None:
        canvas = Image.new("RGB", colors.size, background)
        canvas.paste(colors, mask=alpha)
        colors = canvas
    return _convert(colors, mode)

"""Finds colors that a file describes in another way than by an ICC profile. Pillow only passes on
the profile.
"""

from __future__ import annotations

import struct

from PIL import ExifTags, Image, PngImagePlugin

from latentkit.errors import SampleError
from latentkit.modalities.boxes import find_box, primary_properties, read_color
from latentkit.modalities.icc import (
    ADOBE_RGB_EXPONENT,
    ADOBE_RGB_PRIMARIES,
    D65,
    SRGB_CURVE,
    SRGB_PRIMARIES,
    Point,
    make_profile,
)
from latentkit.modalities.image_formats import CONTENT_ERRORS

# ITU-T H.273, tables 2 and 3. Values left out, 2 ("unspecified") among them, count as sRGB.
WHITE_C, WHITE_DCI = (0.310, 0.316), (0.314, 0.351)
P3_PRIMARIES = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
NTSC_PRIMARIES = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
PRIMARIES: dict[int, tuple[tuple[Point, ...], Point]] = {
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), WHITE_C),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: (NTSC_PRIMARIES, D65),
    7: (NTSC_PRIMARIES, D65),
    8: (((0.681, 0.319), (0.243, 0.692), (0.145, 0.049)), WHITE_C),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    11: (P3_PRIMARIES, WHITE_DCI),
    12: (P3_PRIMARIES, D65),
    22: (((0.630, 0.340), (0.295, 0.605), (0.155, 0.077)), D65),
}
# Television's (1, 6, 14, 15) are shown like sRGB's: what is tagged so was graded on such a screen.
CURVES: dict[int, float] = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
HDR = {16: "PQ", 18: "HLG"}

JPEG2000_SPACES = {12: "CMYK", 16: "sRGB", 17: "gray", 18: "sYCC", 0: "bilevel", 15: "bilevel"}

# What encoders write beside or in place of sRGB's own name (PNG, 11.3.2): within these it is meant.
SRGB_GAMMA = 0.45455
GAMMA_TOLERANCE = 0.005
CHROMATICITY_TOLERANCE = 0.002


def find_profile(image: Image.Image, media: bytes) -> bytes | None:
    """Return an ICC profile of colors that a file describes in another way; None for no
    description, or for sRGB.

    Args:
        image: opened image without a profile.
        media: the whole file.

    Raises:
        SampleError: the image has a high dynamic range or a color space that can't be converted.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        return _png_profile(image, media)
    if image.format in ("AVIF", "HEIF"):
        properties = primary_properties(media)
        boxes = [content for name, content in properties if name == b"colr"]
        colors = [read_color(content, is_jpeg2000=False) for content in boxes]
        codes = next((color.codes for color in colors if color.codes), None)
        return None if codes is None else _profile_of_codes(*codes)
    if image.format == "JPEG2000":
        return _jpeg2000_profile(media)
    return _exif_profile(image)


def _png_profile(image: PngImagePlugin.PngImageFile, media: bytes) -> bytes | None:
    """Return a PNG's profile. cICP takes precedence over sRGB, then gAMA and cHRM (PNG, third
    edition, 4.3).
    """
    codes = _find_png_codes(media)
    if codes is not None:
        if codes[3] != 1:
            raise SampleError("PNG with a narrow range of levels (cICP), which is not supported")
        return _profile_of_codes(codes[0], codes[1])
    if "srgb" in image.info:
        return None
    srgb = tuple(part for point in (D65, *SRGB_PRIMARIES) for part in point)
    gamma = image.info.get("gamma", SRGB_GAMMA)
    chromaticity = image.info.get("chromaticity", srgb)
    is_srgb_curve = abs(gamma - SRGB_GAMMA) < GAMMA_TOLERANCE or gamma <= 0
    is_srgb_gamut = all(
        abs(part - wanted) < CHROMATICITY_TOLERANCE
        for part, wanted in zip(chromaticity, srgb, strict=True)
    )
    if is_srgb_curve and is_srgb_gamut:
        return None
    white, *primaries = zip(chromaticity[::2], chromaticity[1::2], strict=True)
    try:
        return make_profile(tuple(primaries), white, SRGB_CURVE if is_srgb_curve else 1 / gamma)
    except ValueError:
        return None  # meaningless chromaticities are ignored, like a broken profile


def _find_png_codes(media: bytes) -> bytes | None:
    """Return the four bytes of a PNG's cICP chunk, which is before the pixels, or None."""
    at = 8
    while at + 8 <= len(media):
        size, name = struct.unpack_from(">I4s", media, at)
        if name == b"IDAT":
            return None
        if name == b"cICP" and size == 4:
            return media[at + 8 : at + 12]
        at += size + 12
    return None


def _profile_of_codes(primaries: int, transfer: int) -> bytes | None:
    """Return the profile of colors with these codes of ITU-T H.273."""
    if transfer in HDR:
        raise SampleError(
            f"high dynamic range ({HDR[transfer]}), whose white is not sRGB's; convert it to SDR"
        )
    if primaries not in PRIMARIES and transfer not in CURVES:
        return None
    points, white = PRIMARIES.get(primaries, (SRGB_PRIMARIES, D65))
    return make_profile(points, white, CURVES.get(transfer, SRGB_CURVE))


def _jpeg2000_profile(media: bytes) -> bytes | None:
    """Return the profile in a JPEG 2000 file."""
    # A bare codestream has no such box.
    color = read_color(find_box(media, b"jp2h", b"colr"), is_jpeg2000=True)
    if color.space is not None and color.space not in JPEG2000_SPACES:
        raise SampleError(
            f"JPEG 2000 in color space {color.space}, which is not supported; convert the file to"
            " sRGB"
        )
    return color.profile or None


def _exif_profile(image: Image.Image) -> bytes | None:
    """Return Adobe RGB's profile if EXIF names it: cameras by "R03" (DCF 2.0), some tools by color
    space 2.
    """
    try:
        exif = image.getexif()
        if ExifTags.IFD.Exif not in exif:
            return None
        details = exif.get_ifd(ExifTags.IFD.Exif)
        name = exif.get_ifd(ExifTags.IFD.Interop).get(1)
    except CONTENT_ERRORS:
        return None  # broken EXIF data is ignored, like its orientation
    if name == "R03" or details.get(ExifTags.Base.ColorSpace) == 2:
        return make_profile(ADOBE_RGB_PRIMARIES, D65, ADOBE_RGB_EXPONENT)
    return None

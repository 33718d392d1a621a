"""TIFF 6.0 files that Pillow reads wrongly or not at all: finds black and white levels, and refuses
unsupported kinds.
"""

from __future__ import annotations

import io

from PIL import ImagePalette, TiffImagePlugin

from latentkit.errors import SampleError

SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR = 254, 258, 259, 262, 277, 284
COLOR_MAP, SUB_IFDS, INK_SET, SAMPLE_FORMAT = 320, 330, 332, 339
COEFFICIENTS, REFERENCE = 529, 532

PHOTOMETRIC_NAMES = {
    0: "white is zero",
    1: "black is zero",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32803: "camera raw",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
FORMAT_NAMES = {1: "unsigned", 2: "signed", 3: "floating-point"}
UNCOMPRESSED = 1
UNSIGNED, SIGNED = 1, 2

YCBCR_COEFFICIENTS = (0.299, 0.587, 0.114)
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def check_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Check that Pillow reads the pixels correctly. Also corrects a color map with 8-bit values.

    Raises:
        SampleError: Pillow would read the pixels wrongly, or they are a raw file's thumbnail.
    """
    tags = image.tag_v2
    bits, kinds = max(tags.get(BITS, (1,))), tags.get(SAMPLE_FORMAT, (UNSIGNED,))
    if tags.get(SUBFILE, 0) & 1 and SUB_IFDS in tags:
        raise SampleError("raw photo, of which only the thumbnail can be read; develop it to TIFF")
    if SIGNED in kinds and bits <= 16:
        raise SampleError(f"signed values of {bits} bits, so it is unknown which value is white")
    if tags.get(PLANAR, 1) == 2 and bits == 16 and tags.get(COMPRESSION, 1) == UNCOMPRESSED:
        raise SampleError(
            "TIFF of 16 bits in a plane per channel, uncompressed, which Pillow reads wrong; "
            "save it with the channels together or compressed"
        )
    if tags.get(INK_SET, 1) != 1:
        raise SampleError("inks other than cyan, magenta, yellow and black; convert it to RGB")
    if tags.get(PHOTOMETRIC) == 6:
        _check_ycbcr(tags)
    colors = tags.get(COLOR_MAP)
    if image.mode in ("P", "PA") and colors and max(colors) < 256:
        # Old programs filled only 8 of the 16 bits (see `checkcmap` in libtiff's tools).
        image.palette = ImagePalette.raw("RGB;L", bytes(colors))


def _check_ycbcr(tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    """Check that YCbCr has levels from 0 to 255 and the coefficients of ITU-R BT.601, because
    Pillow ignores any others.
    """
    reference = tuple(map(float, tags.get(REFERENCE, (0, 255, 128, 255, 128, 255))))
    coefficients = tuple(map(float, tags.get(COEFFICIENTS, YCBCR_COEFFICIENTS)))
    is_usual = all(abs(a - b) < 1e-3 for a, b in zip(coefficients, YCBCR_COEFFICIENTS, strict=True))
    if reference[:2] != (0, 255) or not is_usual:
        raise SampleError(
            "YCbCr with its own reference levels or coefficients, which is not supported; convert"
            " the file to RGB"
        )


def gray_levels(image: TiffImagePlugin.TiffImageFile) -> tuple[int, int]:
    """Return the values of black and of white of an image in one of Pillow's modes "I"."""
    tags = image.tag_v2
    bits = tags.get(BITS, (1,))[0]
    if bits == 32 and SIGNED in tags.get(SAMPLE_FORMAT, (UNSIGNED,)):
        bits = 16  # no white is defined, but Pillow itself writes 16 bits this way
    white = 2**bits - 1
    return (white, 0) if tags.get(PHOTOMETRIC, 0) == 0 else (0, white)


def explain_unsupported_tiff(media: bytes) -> str | None:
    """Return why Pillow can't open a TIFF; None if the file isn't a TIFF or is broken."""
    if not media.startswith(SIGNATURES):
        return None
    header = media[: 16 if media[2:4] in (b"+\0", b"\0+") else 8]
    tags = TiffImagePlugin.ImageFileDirectory_v2(header)
    file = io.BytesIO(media)
    file.seek(tags.next)
    tags.load(file)
    bits, samples = tags.get(BITS, (1,)), tags.get(SAMPLES, 1)
    kind = FORMAT_NAMES.get(tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0], "undefined")
    color = PHOTOMETRIC_NAMES.get(tags.get(PHOTOMETRIC, 0), str(tags.get(PHOTOMETRIC)))
    if PHOTOMETRIC not in tags:
        return None
    return (
        f"TIFF of a kind that Pillow doesn't read ({color}, {samples} samples of {max(bits)} bits, "
        f"{kind}, compression {tags.get(COMPRESSION, 1)}); convert it to RGB of 8 or 16 bits"
    )

"""Formats of image files: which can be opened, by which package, and the names of the others."""

from __future__ import annotations

import importlib
import struct
import zlib

from PIL import Image

from latentkit.errors import SampleError
from latentkit.modalities.boxes import walk_boxes
from latentkit.modalities.tiff_kinds import explain_unsupported_tiff
from latentkit.runtime.file_endings import IMAGE_PACKAGES

# Named one by one, because Pillow also opens EPS (by starting Ghostscript) and formats without a
# signature, which any text may seem to be.
FORMATS = (
    *("JPEG", "PNG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF"),
    *("QOI", "HEIF", "JXL"),
)

HEIF_BRANDS = (
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1"),
)
JXL_CODESTREAM = b"\xff\x0a"
JXL_SIGNATURES = (JXL_CODESTREAM, b"\x00\x00\x00\x0cJXL \r\n\x87\n")

# What Pillow raises about the content of a file; warnings only where they are errors.
CONTENT_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RuntimeError, struct.error, zlib.error),
    *(Image.DecompressionBombError, Warning),
)

NOT_SRGB = "floating-point light, so it is unknown which value is white; convert it to 8 or 16 bits"
UNSUPPORTED = (
    (b"v/1\x01", f"OpenEXR image: {NOT_SRGB}"),
    (b"#?RADIANCE", f"Radiance image: {NOT_SRGB}"),
    (b"#?RGBE", f"Radiance image: {NOT_SRGB}"),
    (b"PF\n", f"portable float map: {NOT_SRGB}"),
    (b"8BPS", "Photoshop document, which is not read; export it to PNG or TIFF"),
    (b"II\xbc", "JPEG XR image, which is not read; convert it to PNG"),
)


def known_formats() -> list[str]:
    """Return those of `FORMATS` that open here. Loads the packages that open them, so no thread has
    to.
    """
    Image.init()
    for module, register in (("pillow_heif", "register_heif_opener"), ("pillow_jxl", None)):
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue  # the message on a file of that format names the package
        if register is not None:
            getattr(loaded, register)()
    return [name for name in FORMATS if name in Image.OPEN]


def explain_unsupported(media: bytes, formats: list[str]) -> str:
    """Return why a file that is in none of `formats` is not read."""
    suffix = _packaged_suffix(media)
    name = {".avif": "AVIF", ".heic": "HEIF", ".jxl": "JXL"}.get(suffix or "")
    if suffix is not None and name not in formats:
        package = IMAGE_PACKAGES[suffix]
        return f"{name} image, which needs a package that is missing: pip install {package!r}"
    for signature, reason in UNSUPPORTED:
        if media.startswith(signature):
            return reason
    return explain_unsupported_tiff(media) or f"not an image; known formats: {', '.join(formats)}"


def _packaged_suffix(media: bytes) -> str | None:
    """Return the usual ending of a format that needs an additional package, recognized by the
    file's first bytes.
    """
    if media.startswith(JXL_SIGNATURES):
        return ".jxl"
    if media[4:8] != b"ftyp":
        return None
    if media[8:12] in (b"avif", b"avis"):
        return ".avif"
    return ".heic" if media[8:12] in HEIF_BRANDS else None


# ---------------------------------------------------------------- JPEG XL
# Its package decodes a file before it tells the size.


class _Bits:
    """Reads numbers of any bit width from bytes, lowest bit first (ISO 18181-1, 4.2)."""

    def __init__(self, media: bytes) -> None:
        self._left = int.from_bytes(media[:64], "little")

    def take(self, count: int) -> int:
        """Return the next `count` bits as a number."""
        value = self._left & ((1 << count) - 1)
        self._left >>= count
        return value


def read_jxl_header(media: bytes) -> tuple[int, int, int]:
    """Return width, height, and orientation from 1 to 8, of a JPEG XL file (ISO 18181-1, annex D).

    Raises:
        SampleError: the file contains no codestream.
    """
    bits = _Bits(_jxl_codestream(media)[2:])
    is_small = bits.take(1)
    height = _take_side(bits, is_small)
    ratio = bits.take(3)
    shares = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
    if ratio:
        times, over = shares[ratio - 1]
        width = height * times // over
    else:
        width = _take_side(bits, is_small)
    has_orientation = not bits.take(1) and bits.take(1)
    return width, height, 1 + bits.take(3) if has_orientation else 1


def _take_side(bits: _Bits, is_small: int) -> int:
    """Read one side's length."""
    return (bits.take(5) + 1) * 8 if is_small else 1 + bits.take((9, 13, 18, 30)[bits.take(2)])


def _jxl_codestream(media: bytes) -> bytes:
    """Return the codestream of a JPEG XL file."""
    if media.startswith(JXL_CODESTREAM):
        return media
    for name, content in walk_boxes(media):
        if name in (b"jxlc", b"jxlp"):
            return content if name == b"jxlc" else content[4:]
    raise SampleError("broken image: JPEG XL without a codestream")

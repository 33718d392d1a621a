"""Corrects what Pillow reads wrongly in an image's header, or refuses the image."""

from __future__ import annotations

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from latentkit.errors import SampleError
from latentkit.modalities.boxes import primary_properties
from latentkit.modalities.color_tags import find_profile
from latentkit.modalities.image_formats import read_jxl_header
from latentkit.modalities.tiff_kinds import check_tiff

PNG_GRAY, PNG_RGB = 0, 2


def complete_header(image: Image.Image, media: bytes) -> None:
    """Correct the transparency, orientation and colors of an opened image.

    Raises:
        SampleError: its pixels would be decoded wrongly.
        Exception: what Pillow raises for broken tags.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        check_tiff(image)
    elif isinstance(image, PngImagePlugin.PngImageFile):
        _scale_transparency(image, depth=media[24], color_type=media[25])
    elif image.format in ("JPEG", "MPO"):
        if image.mode == "CMYK" and "adobe" not in image.info:
            # Adobe inverts ink values, and programs differ on all other files.
            raise SampleError(
                "CMYK JPEG without an Adobe marker: it is unknown whether its values are inverted;"
                " convert it to RGB"
            )
    elif image.format == "HEIF":
        _restore_heif_orientation(image, media)
    elif image.format == "JXL":
        _turn_jxl(image, media)
    if not image.info.get("icc_profile"):
        profile = find_profile(image, media)
        if profile is not None:
            image.info["icc_profile"] = profile


def _scale_transparency(image: PngImagePlugin.PngImageFile, depth: int, color_type: int) -> None:
    """Convert tRNS, which is a value with the file's bit depth, to the 8-bit levels that Pillow
    compares it with.
    """
    key = image.info.get("transparency")
    if key is None:
        return
    if color_type == PNG_RGB and depth == 16:
        raise SampleError(
            "PNG of 16 bits a channel with a transparent color (tRNS), which 8 bits don't tell "
            "apart; give it an alpha channel"
        )
    if color_type == PNG_GRAY and depth in (2, 4):
        image.info["transparency"] = (key & (2**depth - 1)) * 255 // (2**depth - 1)


def _restore_heif_orientation(image: Image.Image, media: bytes) -> None:
    """Put EXIF's orientation back into the image if the container has no orientation of its own.

    pillow-heif always sets it to 1, but libheif turns the pixels only by the container's.
    """
    original = image.info.get("original_orientation") or 1
    turns = [name for name, _ in primary_properties(media) if name in (b"irot", b"imir")]
    if original != 1 and not turns:
        image.getexif()[ExifTags.Base.Orientation] = original


def _turn_jxl(image: Image.Image, media: bytes) -> None:
    """Ignore EXIF's orientation if the codestream has one, unless the file is a recompressed
    JPEG.
    """
    if read_jxl_header(media)[2] != 1 and not getattr(image, "jpeg", False):
        image.getexif()[ExifTags.Base.Orientation] = 1  # libjxl has turned the pixels

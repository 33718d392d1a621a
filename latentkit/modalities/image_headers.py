"""Put right what Pillow leaves out of a picture's header, or refuse the picture."""

from __future__ import annotations

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from latentkit.errors import SampleError
from latentkit.modalities.boxes import primary_properties
from latentkit.modalities.color_tags import find_profile
from latentkit.modalities.image_formats import read_jxl_header
from latentkit.modalities.tiff_kinds import check_tiff

PNG_GRAY, PNG_RGB = 0, 2


def complete_header(picture: Image.Image, media: bytes) -> None:
    """Put right the transparency, orientation and colors of an opened picture.

    Raises:
        SampleError: its pixels would come out wrong.
        Exception: broken tags, as Pillow raises them.
    """
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        check_tiff(picture)
    elif isinstance(picture, PngImagePlugin.PngImageFile):
        _scale_transparency(picture, depth=media[24], color_type=media[25])
    elif picture.format in ("JPEG", "MPO"):
        if picture.mode == "CMYK" and "adobe" not in picture.info:
            # Adobe counts ink upside down, and programs differ about all others.
            raise SampleError(
                "CMYK JPEG without Adobe's mark, whose white is not known; convert it"
            )
    elif picture.format == "HEIF":
        _turn_heif(picture, media)
    elif picture.format == "JXL":
        _turn_jxl(picture, media)
    if not picture.info.get("icc_profile"):
        profile = find_profile(picture, media)
        if profile is not None:
            picture.info["icc_profile"] = profile


def _scale_transparency(picture: PngImagePlugin.PngImageFile, depth: int, color_type: int) -> None:
    """tRNS names a value of the file's own depth, which Pillow compares with levels of 8 bits."""
    key = picture.info.get("transparency")
    if key is None:
        return
    if color_type == PNG_RGB and depth == 16:
        raise SampleError(
            "PNG of 16 bits a channel with a transparent color (tRNS), which 8 bits don't tell "
            "apart; give it an alpha channel"
        )
    if color_type == PNG_GRAY and depth in (2, 4):
        picture.info["transparency"] = (key & (2**depth - 1)) * 255 // (2**depth - 1)


def _turn_heif(picture: Image.Image, media: bytes) -> None:
    """EXIF's orientation counts where the container turns nothing: its writer left it to EXIF.

    Where it does turn, libheif has done so, and pillow-heif has set that orientation to 1.
    """
    original = picture.info.get("original_orientation") or 1
    turns = [name for name, _ in primary_properties(media) if name in (b"irot", b"imir")]
    if original != 1 and not turns:
        picture.getexif()[ExifTags.Base.Orientation] = original


def _turn_jxl(picture: Image.Image, media: bytes) -> None:
    """EXIF's orientation counts where the codestream has none, or a JPEG was brought back."""
    if read_jxl_header(media)[2] != 1 and not getattr(picture, "jpeg", False):
        picture.getexif()[ExifTags.Base.Orientation] = 1  # libjxl has turned the pixels

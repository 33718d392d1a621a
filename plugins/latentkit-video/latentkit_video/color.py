"""Chooses the color matrix that a frame is converted with, and reports what a user should know
about its colors.
"""

from __future__ import annotations

from typing import Literal

from av.video import VideoFrame

from latentkit.errors import SampleError

Untagged = Literal["auto", "bt601", "bt709", "bt2020"]

BT601, BT709, BT2020 = 6, 1, 9
"""As ITU-T H.273, table 4, and FFmpeg number color matrices; so the names below."""

UNTAGGED = {"bt601": BT601, "bt709": BT709, "bt2020": BT2020}
NAMES = {BT601: "BT.601", BT709: "BT.709"}
CONVERTED = {BT709, 4, 5, BT601, 7, BT2020}
"""Matrices that FFmpeg's swscale knows. For others it silently uses BT.601."""

NO_MATRIX = {8: "YCgCo", 10: "BT.2020 with constant luminance", 14: "ICtCp"}
UNSPECIFIED = {0, 2, 3}
"""For pixels with luma and chroma. 0 means RGB, which these aren't."""

WIDE_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
OTHER_TRANSFERS = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE 428"}
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of H.273, table 3, whose white isn't that of a screen."""

HD_WIDTH, SD_HEIGHT = 1280, 576
"""From this width on, or above this height, a video without a tag is taken for BT.709, upright or
not: that is how cameras write HD, and what players such as mpv take it for (video/csputils.c,
mp_csp_guess_colorspace).
"""


def refuse_hdr(transfer: int) -> None:
    """Refuse a transfer characteristic of HDR.

    Raises:
        SampleError: the transfer characteristic is PQ or HLG.
    """
    if transfer in HDR_TRANSFERS:
        name = HDR_TRANSFERS[transfer]
        raise SampleError(
            f"HDR ({name}), so it is unknown which value is white; tone-map it to SDR first"
        )


def matrix_of(frame: VideoFrame, untagged: Untagged) -> int:
    """Return the color matrix to convert a frame with; 2 (unspecified) if its pixels need none.

    Args:
        untagged: the matrix of frames without a tag; "auto" decides by their size.

    Raises:
        SampleError: the tagged matrix can't be converted.
    """
    matrix = int(frame.colorspace)
    if not _has_chroma(frame):
        return 2
    if matrix in UNSPECIFIED:
        shorter, longer = sorted((frame.width, frame.height))
        is_hd = longer >= HD_WIDTH or shorter > SD_HEIGHT
        return UNTAGGED.get(untagged, BT709 if is_hd else BT601)
    if matrix not in CONVERTED:
        name = NO_MATRIX.get(matrix, f"number {matrix} of ITU-T H.273")
        raise SampleError(
            f"its color matrix is {name}, which can't be converted; convert it to BT.709"
        )
    return matrix


def color_remarks(frame: VideoFrame, untagged: Untagged) -> list[str]:
    """Return remarks on what was guessed or left unchanged in the colors of a frame and those like
    it.
    """
    remarks = []
    if untagged == "auto" and _has_chroma(frame) and int(frame.colorspace) in UNSPECIFIED:
        name = NAMES[matrix_of(frame, untagged)]
        remarks.append(f"color matrix not tagged, assumed to be {name}")
    if primaries := WIDE_PRIMARIES.get(int(frame.color_primaries)):
        remarks.append(f"{primaries} primaries, treated as those of sRGB")
    if transfer := OTHER_TRANSFERS.get(int(frame.color_trc)):
        remarks.append(f"{transfer} transfer curve, treated as that of sRGB")
    if any(component.is_alpha for component in frame.format.components):
        remarks.append("transparency ignored")
    if frame.interlaced_frame:
        remarks.append("interlaced, and not deinterlaced")
    return remarks


def _has_chroma(frame: VideoFrame) -> bool:
    """Return whether a frame has luma and two chroma channels."""
    kind = frame.format
    is_yuv = not (kind.is_rgb or kind.has_palette or kind.name.startswith("xyz"))
    return is_yuv and len([part for part in kind.components if not part.is_alpha]) == 3

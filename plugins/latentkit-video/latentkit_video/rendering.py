"""Writes clips to a video file that any player shows."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
import torch
from av.video import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from latentkit.kit import Shape
from latentkit_video.scaling import Pixels

ENCODER: Literal["libx264", "mpeg4"] = "libx264" if "libx264" in av.codecs_available else "mpeg4"
OPTIONS = {"libx264": {"crf": "16"}, "mpeg4": {"qmin": "1", "qmax": "3"}}
"""Quality at which the encoding isn't visible."""

BT709 = LIMITED = 1
"""As numbered in ITU-T H.273 (color matrix) and FFmpeg (range)."""

GAP_PIXELS = 4
WHITE = 255


def write_video(
    rows: Sequence[Sequence[Tensor]], limits: tuple[float, float], fps: float, path: Path
) -> None:
    """Write an .mp4 in which the clips of a row play side by side, with the rows below each other.

    Args:
        rows: clips (3, T, H, W) with values in `limits`; those that end early stay on their last
            frame.
        limits: lowest and highest value; other values are clipped.
        fps: frames per second.
        path: its parent folders are created.

    Raises:
        ValueError: there is no clip, or one has another shape.
    """
    clips = [[_to_pixels(tensor, limits) for tensor in row] for row in rows if len(row)]
    if not clips:
        raise ValueError("render needs at least one tensor, got none")
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = _sheet_size(clips)
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream(
            ENCODER, Fraction(fps).limit_denominator(1001), options=OPTIONS[ENCODER]
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = BT709, LIMITED
        for number in range(max(len(clip) for row in clips for clip in row)):
            frame = VideoFrame.from_ndarray(_draw_sheet(clips, number, height, width), "rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _to_pixels(tensor: Tensor, limits: tuple[float, float]) -> Pixels:
    """Return (T, H, W, 3) with 8 bits."""
    if tensor.ndim != 4 or tensor.shape[0] != 3:
        raise ValueError(f"render takes (3, T, H, W) tensors, got shape {tuple(tensor.shape)}")
    values = (tensor.detach().to("cpu", torch.float32) - limits[0]) * (
        255 / (limits[1] - limits[0])
    )
    pixels: Pixels = (
        values.nan_to_num(0.0).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    )
    return pixels


def _sheet_size(rows: Sequence[Sequence[Pixels]]) -> Shape:
    """Return height and width of all clips with gaps between and around them, both even, as players
    need.
    """
    height = sum(max(clip.shape[1] for clip in row) + GAP_PIXELS for row in rows) + GAP_PIXELS
    width = max(sum(clip.shape[2] + GAP_PIXELS for clip in row) for row in rows) + GAP_PIXELS
    return height + height % 2, width + width % 2


def _draw_sheet(rows: Sequence[Sequence[Pixels]], number: int, height: int, width: int) -> Pixels:
    """Return one frame of all clips, (H, W, 3). Clips that have ended show their last frame."""
    sheet = np.full((height, width, 3), WHITE, np.uint8)
    top = GAP_PIXELS
    for row in rows:
        left = GAP_PIXELS
        for clip in row:
            sheet[top : top + clip.shape[1], left : left + clip.shape[2]] = clip[
                min(number, len(clip) - 1)
            ]
            left += clip.shape[2] + GAP_PIXELS
        top += max(clip.shape[1] for clip in row) + GAP_PIXELS
    return sheet

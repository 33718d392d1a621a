"""Converts decoded frames to upright RGB pixels of one size: cropped, scaled and converted in one
pass of FFmpeg's swscale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video import VideoFrame

from latentkit.errors import SampleError
from latentkit.kit import Box, Shape
from latentkit_video.color import Untagged, matrix_of

Pixels = npt.NDArray[np.uint8]

SCALING = "flags=lanczos+full_chroma_inp+full_chroma_int+accurate_rnd+bitexact"
"""Lanczos, which swscale widens by the factor that an image shrinks by; colors at full resolution,
all sums rounded.
"""

RGB_OF_PLANES = (2, 0, 1)
"""FFmpeg orders planes green, blue, red."""


@dataclass(frozen=True)
class Turn:
    """How a stored image becomes upright: rows and columns are swapped, then either is reversed."""

    swap: bool = False
    reverse_columns: bool = False
    reverse_rows: bool = False

    def shape(self, to_stored: Shape) -> Shape:
        """Return the upright shape of a stored one, and the other way round."""
        return (to_stored[1], to_stored[0]) if self.swap else to_stored

    def upright(self, pixels: Pixels) -> Pixels:
        """Return stored pixels, (C, H, W), as an upright view."""
        pixels = pixels.swapaxes(1, 2) if self.swap else pixels
        return pixels[:, :: -1 if self.reverse_rows else 1, :: -1 if self.reverse_columns else 1]

    def to_stored(self, box: Box, upright: Shape) -> Box:
        """Return where a part of the upright image, which has shape `upright`, is stored."""
        top = upright[0] - box.top - box.height if self.reverse_rows else box.top
        left = upright[1] - box.left - box.width if self.reverse_columns else box.left
        return (
            Box(left, top, box.width, box.height)
            if self.swap
            else Box(top, left, box.height, box.width)
        )

    def to_upright(self, box: Box, upright: Shape) -> Box:
        """Return where a stored part is in the upright image."""
        if self.swap:
            box = Box(box.left, box.top, box.width, box.height)
        top = upright[0] - box.top - box.height if self.reverse_rows else box.top
        left = upright[1] - box.left - box.width if self.reverse_columns else box.left
        return Box(top, left, box.height, box.width)


def turn_of(frame: VideoFrame) -> Turn:
    """Return the turn in the display matrix of a frame.

    The matrix maps (x, y) to (a x + c y, b x + d y): ISO/IEC 14496-12, 8.3.2 (track header box).

    Raises:
        SampleError: the angle isn't a multiple of 90 degrees.
    """
    side_data: Any = frame.side_data  # a mapping, which PyAV's stub lacks
    found = side_data.get(Type.DISPLAYMATRIX)
    if found is None:
        return Turn()
    a, b, _, c, d = np.frombuffer(found, np.int32)[:5].tolist()
    if b == c == 0 and a and d:
        return Turn(False, a < 0, d < 0)
    if a == d == 0 and b and c:
        return Turn(True, c < 0, b < 0)
    raise SampleError(
        f"a display matrix [{a}, {b}; {c}, {d}] that doesn't turn by a multiple of 90 degrees"
    )


class Cut:
    """A part of every frame of a video, upright and at one size.

    Args:
        frame: the first frame; all others must have its format.
        untagged: color matrix of frames without a tag.
        turn: turn to upright.
        box: part to keep, in displayed pixels of the upright image; rounded to whole stored pixels,
            and to those at which colors are stored.
        display_size: (height, width) of the stored image with square pixels.
        shape: (height, width) of the result.
    """

    def __init__(
        self,
        frame: VideoFrame,
        untagged: Untagged,
        turn: Turn,
        box: Box,
        display_size: Shape,
        shape: Shape,
    ) -> None:
        self._untagged = untagged
        self._kind = _source_format(frame, untagged)
        self._turn = turn
        self._stored_size = frame.height, frame.width
        self._shape = turn.shape(shape)
        box = turn.to_stored(box, turn.shape(display_size))
        down, across = frame.height / display_size[0], frame.width / display_size[1]
        self._box = _round_to_pixels(
            frame, Box(box.top * down, box.left * across, box.height * down, box.width * across)
        )
        self._graph = self._open_graph()

    def geometry(self) -> dict[str, Any]:
        """Return height and width of the upright image, and which part of it is kept, in its
        pixels, for the index.
        """
        height, width = self._turn.shape(self._stored_size)
        return {
            "height": height,
            "width": width,
            "crop": self._turn.to_upright(self._box, (height, width)).rounded(),
        }

    def scale(self, frame: VideoFrame) -> Pixels:
        """Return (3, H, W) in sRGB, 0 to 255.

        Raises:
            SampleError: the frame's size or format differs from the first.
        """
        if (kind := _source_format(frame, self._untagged)) != self._kind:
            raise SampleError(f"its frames change from {self._kind} to {kind}")
        self._graph.vpush(frame)
        scaled = self._graph.vpull()
        planes = [scaled.planes[number] for number in RGB_OF_PLANES]
        lines = [
            np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            for plane in planes
        ]
        return self._turn.upright(
            np.stack([part[: self._shape[0], : self._shape[1]] for part in lines])
        )

    def _open_graph(self) -> Graph:
        graph = Graph()
        graph.threads = 1
        top, left, height, width = (round(value) for value in self._box.rounded())
        graph.link_nodes(
            graph.add("buffer", f"{self._kind}:time_base=1/1"),
            graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"),
            graph.add("scale", f"{self._shape[1]}:{self._shape[0]}:{SCALING}"),
            graph.add("format", "gbrp"),
            graph.add("buffersink"),
        )
        graph.configure()
        return graph


def _source_format(frame: VideoFrame, untagged: Untagged) -> str:
    """Return everything that swscale must know about a frame, as arguments of FFmpeg's buffer
    source.
    """
    size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
    return f"{size}:colorspace={matrix_of(frame, untagged)}:range={int(frame.color_range)}"


def _round_to_pixels(frame: VideoFrame, box: Box) -> Box:
    """Return the box with whole pixels, and a corner at which a color sample begins."""
    across = 64 // frame.format.chroma_width(64)
    down = 64 // frame.format.chroma_height(64)
    height, width = (
        max(1, min(round(box.height), frame.height)),
        max(1, min(round(box.width), frame.width)),
    )
    top = min(round(box.top / down), (frame.height - height) // down) * down
    left = min(round(box.left / across), (frame.width - width) // across) * across
    return Box(float(top), float(left), float(height), float(width))

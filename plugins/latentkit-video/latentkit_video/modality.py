"""Modality `video`: prepares videos as clips with one shape per bucket, and renders clips as a
video.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import BuildContext, InputSpec, Prepared, RowMemory, Sample
from latentkit.errors import RecipeError
from latentkit.kit import (
    BufferPool,
    check_small,
    enlarged_remarks,
    nearest_shape,
    refuse_beyond_memory,
    target_shapes,
    unflipped,
    view_box,
)
from latentkit_video.color import color_remarks, refuse_hdr
from latentkit_video.decoding import ShownFrame, Video, open_video
from latentkit_video.packets import UnprovenSeekError
from latentkit_video.rendering import write_video
from latentkit_video.scaling import Cut, Pixels, turn_of
from latentkit_video.sizes import check_sizes
from latentkit_video.timing import Clip

if TYPE_CHECKING:
    from av.video import VideoFrame

    from latentkit_video.plugin import VideoConfig

Floats = npt.NDArray[np.float32]

PREVIEW_FPS = 24.0
"""Rate of a preview if the recipe sets none."""


@dataclass(frozen=True)
class _View:
    """One view: its cut of the video, whether it is mirrored, and the array for its frames, (3, T,
    H, W).
    """

    name: str
    cut: Cut
    flip: bool
    values: Floats
    geometry: dict[str, Any]
    remarks: list[str]


class VideoModality:
    """Prepares clips as (3, T, H, W) float32 in the encoder's range, in sRGB.

    Args:
        config: frames and their rate, size or buckets, crop and views.
        context: seed of the random crops, and what the encoder takes.

    Raises:
        RecipeError: the encoder doesn't accept the channels, sizes or frame counts; the message
            names the nearest ones.
    """

    metrics: Sequence[str] = ("psnr",)
    ignores_sizes = True
    preview_suffix = ".mp4"

    def __init__(self, config: VideoConfig, context: BuildContext) -> None:
        self._config = config
        self._seed = context.seed
        self._input = context.input or InputSpec(channels=3, axes="CTHW")
        if (self._input.axes, self._input.channels) != ("CTHW", 3):
            raise RecipeError(
                "modality video makes 3 channels on the axes CTHW, but the encoder takes"
                f" {self._input.channels} on {self._input.axes}"
            )
        check_sizes(config, config.frames, self._input)
        self._shapes = target_shapes(config)
        refuse_beyond_memory(
            "modality.with.frames and size", (3, config.frames, *max(self._shapes, key=math.prod))
        )
        self._buffers = BufferPool(pinned=False)
        self._seeks = True

    def prepare(self, sample: Sample, memory: RowMemory | None = None) -> Iterator[Prepared]:
        """Yield every view of a clip, in the recipe's order: (3, T, H, W) float32 in the encoder's
        range, all from one decoding.

        The clip begins at the start of the sample's span, or else of the video.

        Raises:
            SampleError: not a video, damaged, shorter than the clip, HDR, or too small while
                `on_small` is `skip`.
            SourceError: too small while `on_small` is `fail`.
            OSError: the media can't be reached.
        """
        memory = memory or self._buffers
        try:
            views = self._decode(sample, self._seeks and sample.span is not None, memory)
        except UnprovenSeekError:
            views = self._decode(sample, False, memory)
        for view in views:
            bucket = "x".join(str(size) for size in view.values.shape[1:])
            tensor = torch.from_numpy(view.values)
            yield Prepared(view.name, bucket, tensor, view.geometry, view.remarks)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write an .mp4 with a row of clips for each inner sequence, whatever their sizes. Parent
        folders are created.

        A clip that is shorter than others stays on its last frame. The rate is the recipe's, or 24
        frames per second without one.

        Args:
            tensors: (3, T, H, W) each, any float dtype and device, in the encoder's range; other
                values are clipped.
            path: file to write.

        Raises:
            ValueError: there is no tensor, or one has another shape.
        """
        fps = (self._config.fps or PREVIEW_FPS) / self._config.frame_stride
        write_video(tensors, self._input.range, fps, path)

    def without_seeking(self) -> VideoModality:
        """Return the same modality with every video decoded from its start."""
        other = copy.copy(self)
        other._seeks = False
        return other

    def _decode(self, sample: Sample, seeks: bool, memory: RowMemory) -> list[_View]:
        """Return all views of a clip.

        Raises:
            UnprovenSeekError: seeking may give other frames.
        """
        with open_video(sample, self._config.max_pixels) as video:
            check_small(self._config, sample.key, video.size)
            start, stop = sample.span or (0.0, None)
            options = self._config
            clip = Clip(start, stop, options.frames, video.rate, options.fps, options.frame_stride)
            needed = start - clip.slack
            shown = video.frames_from(needed) if seeks and needed > 0 else video.frames(needed)
            views = self._read(sample.key, video, clip, shown, memory)
            return [
                replace(view, remarks=sorted({*view.remarks, *video.remarks})) for view in views
            ]

    def _read(
        self, key: str, video: Video, clip: Clip, shown: Iterator[ShownFrame], memory: RowMemory
    ) -> list[_View]:
        """Return all views, filled frame by frame."""
        views: list[_View] = []
        last: VideoFrame | None = None
        for number, frame in enumerate(clip.pick(shown)):
            views = views or self._open_views(key, video, clip, frame, memory)
            if frame is last:
                for view in views:
                    view.values[:, number] = view.values[:, number - 1]
                continue
            pixels = {cut: cut.scale(frame) for cut in {view.cut: None for view in views}}
            for view in views:
                self._fill(
                    view.values[:, number], pixels[view.cut][:, :, :: -1 if view.flip else 1]
                )
            last = frame
        return views

    def _open_views(
        self, key: str, video: Video, clip: Clip, frame: VideoFrame, memory: RowMemory
    ) -> list[_View]:
        """Return all views, with memory that isn't filled yet."""
        refuse_hdr(int(frame.color_trc))
        turn = turn_of(frame)
        shape = nearest_shape(self._shapes, turn.shape(video.display_size))
        color, enlarged = color_remarks(frame, self._config.color), dict[str, list[str]]()
        cuts: dict[str, Cut] = {}
        views = []
        for name in self._config.views:
            crop = unflipped(name)
            if crop not in cuts:
                box = view_box(
                    self._config, self._seed, key, crop, turn.shape(video.display_size), shape
                )
                enlarged[crop] = enlarged_remarks(box, shape)
                cuts[crop] = Cut(frame, self._config.color, turn, box, video.display_size, shape)
            geometry = {
                **cuts[crop].geometry(),
                "flip": name != crop,
                "start": round(clip.start, 6),
                "fps": round(clip.rate, 6),
            }
            values = memory.get((3, clip.frames, *shape), np.float32)
            remarks = [*color, *enlarged[crop]]
            views.append(_View(name, cuts[crop], name != crop, values, geometry, remarks))
        return views

    def _fill(self, values: Floats, pixels: Pixels) -> None:
        """Write pixels as values: 0 becomes exactly the lower limit of the encoder's range, 255
        exactly the upper one.
        """
        low, high = self._input.range
        # Divided, because the inverse is not exact in floating point: 255 would miss the limit.
        np.divide(pixels, np.float32(255 / (high - low)), out=values, dtype=np.float32)
        np.add(values, np.float32(low), out=values)

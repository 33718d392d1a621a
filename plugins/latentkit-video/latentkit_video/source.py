"""Source `video-clips`: the videos below a folder, each cut into spans of time."""

from __future__ import annotations

import sys

from latentkit.contracts import BuildContext, Sample
from latentkit.sources.folder import FolderSource
from latentkit.sources.spans import TOLERANCE, Span, SpanSource, equal_spans
from latentkit_video.decoding import open_video
from latentkit_video.plugin import VideoClipsConfig


def open_video_clips(config: VideoClipsConfig, context: BuildContext) -> SpanSource:
    """The clips of all videos in a folder; a video that can't be cut stays one sample, for the modality to say why.

    Raises:
        SourceError: no such folder, or no video in it.
        OSError: a video can't be reached.
    """

    def find_spans(video: Sample) -> list[Span]:
        return spans_of(video, config)

    return SpanSource(FolderSource(config, context), find_spans)


def spans_of(sample: Sample, config: VideoClipsConfig) -> list[Span]:
    """Start and end of each clip, in seconds from the video's first frame; none where the video is shorter than one.

    Raises:
        SampleError: not a video, or a damaged one.
        OSError: it can't be reached.
    """
    with open_video(sample, max_pixels=sys.maxsize) as video:
        duration, rate = video.duration(), config.fps or video.rate
    seconds_per_unit = 1.0 if config.frames is None else 1 / rate
    length = (config.seconds or config.frames or 0) * seconds_per_unit
    stride = None if config.stride is None else config.stride * seconds_per_unit
    spans = equal_spans(duration, length, stride, "keep" if config.tail == "keep" else "drop")
    if config.tail == "overlap" and spans and spans[-1][1] < duration - TOLERANCE:
        spans.append((round(duration - length, 6), round(duration, 6)))
    return spans

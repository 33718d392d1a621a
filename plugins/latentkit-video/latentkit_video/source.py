"""Source `video-clips`: the videos below a folder, each cut into spans of time."""

from __future__ import annotations

import sys

from latentkit.contracts import BuildContext, Sample
from latentkit.kit import FolderSource
from latentkit.sources.spans import TOLERANCE, Span, SpanSource, equal_spans
from latentkit_video.decoding import open_video
from latentkit_video.plugin import VideoClipsConfig


def open_video_clips(config: VideoClipsConfig, context: BuildContext) -> SpanSource:
    """Return the clips of all videos in a folder. A video that can't be cut stays one sample, whose
    preparation reports the problem.

    Raises:
        SourceError: the folder doesn't exist or contains no video.
        OSError: a video can't be reached.
    """
    shortened: list[str] = []

    def find_spans(sample: Sample) -> list[Span]:
        duration, rate = measure(sample)
        spans = spans_of(duration, rate, config)
        if spans and max(stop for _, stop in spans) < duration - 0.5 / rate:
            shortened.append(sample.key)
        return spans

    return SpanSource(FolderSource(config, context), find_spans, shortened)


def measure(sample: Sample) -> tuple[float, float]:
    """Return the seconds from a video's first frame to its end, and its frames per second.

    Raises:
        SampleError: not a video, or a damaged one.
        OSError: the video can't be reached.
    """
    with open_video(sample, max_pixels=sys.maxsize) as video:
        return video.duration(), video.rate


def spans_of(duration: float, video_rate: float, config: VideoClipsConfig) -> list[Span]:
    """Return start and end of each clip, in seconds from the first frame; nothing for a video
    shorter than one clip.
    """
    rate = config.fps or video_rate
    seconds_per_unit = 1.0 if config.frames is None else 1 / rate
    length = (config.seconds or config.frames or 0) * seconds_per_unit
    stride = None if config.stride is None else config.stride * seconds_per_unit
    spans = equal_spans(duration, length, stride, "keep" if config.tail == "keep" else "drop")
    if config.tail == "overlap" and spans and spans[-1][1] < duration - TOLERANCE:
        spans.append((round(duration - length, 6), round(duration, 6)))
    return spans

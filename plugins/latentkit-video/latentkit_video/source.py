"""Source `video-clips`: the films below a folder, each cut into spans of time."""

from __future__ import annotations

import sys

from latentkit.contracts import BuildContext, Sample
from latentkit.sources.folder import FolderSource
from latentkit.sources.spans import TOLERANCE, Span, SpanSource, equal_spans
from latentkit_video.film import open_film
from latentkit_video.plugin import VideoClipsConfig


def open_video_clips(config: VideoClipsConfig, context: BuildContext) -> SpanSource:
    """The clips of all films in a folder; a film that can't be cut stays one sample, for the modality to say why.

    Raises:
        SourceError: no such folder, or no film in it.
        OSError: a film can't be reached.
    """

    def find_spans(film: Sample) -> list[Span]:
        return spans_of(film, config)

    return SpanSource(FolderSource(config, context), find_spans)


def spans_of(sample: Sample, config: VideoClipsConfig) -> list[Span]:
    """Start and end of each clip, in seconds from the film's first frame; none where the film is shorter than one.

    Raises:
        SampleError: not a film, or a damaged one.
        OSError: it can't be reached.
    """
    with open_film(sample, max_pixels=sys.maxsize) as film:
        duration, rate = film.duration(), config.fps or film.rate
    seconds_per_unit = 1.0 if config.frames is None else 1 / rate
    length = (config.seconds or config.frames or 0) * seconds_per_unit
    stride = None if config.stride is None else config.stride * seconds_per_unit
    spans = equal_spans(duration, length, stride, "keep" if config.tail == "keep" else "drop")
    if config.tail == "overlap" and spans and spans[-1][1] < duration - TOLERANCE:
        spans.append((round(duration - length, 6), round(duration, 6)))
    return spans

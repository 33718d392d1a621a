"""Source `audio-clips`: a folder of audio files, each whole or cut into spans."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Sample, Source
from latentkit.kit import FolderSource
from latentkit.sources.spans import TOLERANCE, Span, SpanSource, equal_spans
from latentkit_audio.files import open_audio
from latentkit_audio.plugin import AudioClipsConfig


def open_audio_clips(config: AudioClipsConfig, context: BuildContext) -> Source:
    """Return the source of a recipe. If files are cut, the header of each is opened.

    Raises:
        SourceError: the folder doesn't exist or contains no audio file.
        OSError: a file can't be reached.
    """
    files, length = FolderSource(config, context), config.length
    if length is None:
        return files

    shortened: list[str] = []

    def find_spans(sample: Sample) -> list[Span]:
        with open_audio(sample) as sound:
            duration = sound.properties.num_frames / sound.properties.rate_hz
        spans = equal_spans(duration, length, config.stride, config.tail)
        if spans and spans[-1][1] < duration - TOLERANCE:
            shortened.append(sample.key)
        return spans

    return SpanSource(files, find_spans, shortened)

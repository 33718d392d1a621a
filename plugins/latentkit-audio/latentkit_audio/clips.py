"""Source `audio-clips`: a folder of sounds, each whole or cut into spans."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Sample, Source
from latentkit.kit import FolderSource
from latentkit.sources.spans import TOLERANCE, Span, SpanSource, equal_spans
from latentkit_audio.files import open_sound
from latentkit_audio.plugin import AudioClipsConfig


def open_audio_clips(config: AudioClipsConfig, context: BuildContext) -> Source:
    """The source of a recipe; where files are cut, it opens the header of each.

    Raises:
        SourceError: no such folder, or no sound in it.
        OSError: a file can't be reached.
    """
    files, length = FolderSource(config, context), config.length
    if length is None:
        return files

    shortened: list[str] = []

    def find_spans(sample: Sample) -> list[Span]:
        with open_sound(sample) as sound:
            duration = sound.facts.num_frames / sound.facts.rate_hz
        spans = equal_spans(duration, length, config.stride, config.tail)
        if spans and spans[-1][1] < duration - TOLERANCE:
            shortened.append(sample.key)
        return spans

    return SpanSource(files, find_spans, shortened)

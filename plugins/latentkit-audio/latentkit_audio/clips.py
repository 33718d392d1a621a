"""Source `audio-clips`: a folder of sounds, each whole or cut into spans."""

from __future__ import annotations

from latentkit.contracts import BuildContext, Sample, Source
from latentkit.sources.folder import FolderSource
from latentkit.sources.spans import Span, SpanSource, equal_spans
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

    def find_spans(sample: Sample) -> list[Span]:
        with open_sound(sample) as sound:
            return equal_spans(sound.facts.num_frames / sound.facts.rate_hz, length, config.stride, config.tail)

    return SpanSource(files, find_spans)

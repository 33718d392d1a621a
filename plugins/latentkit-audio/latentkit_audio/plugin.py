"""Plugin declarations. Importing this loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.contracts import BuildContext, Config, Modality, ModalitySpec, Source, SourceSpec
from latentkit.hooks import hookimpl
from latentkit.kit import FolderConfig

AUDIO_SUFFIXES = (
    *(
        ".wav",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
        ".w64",
        ".rf64",
    ),
    *(".m4a", ".m4b", ".aac", ".mka", ".weba", ".wma", ".amr", ".wv", ".tta", ".ape"),
)
"""PyAV reads those in the second line."""

VIEW_HELP = "plain, crop-1, crop-2 ... (further random crops)"


class AudioClipsConfig(FolderConfig):
    """Options of the source `audio-clips`: audio files below a folder, whole or cut into spans."""

    suffixes: list[str] = Field(
        list(AUDIO_SUFFIXES),
        min_length=1,
        description="endings of the files to use, in any case, with the dot",
    )
    length: float | None = Field(
        None, gt=0, description="length of a span, in seconds; none: each file is one sample"
    )
    stride: float | None = Field(
        None,
        gt=0,
        description="seconds from the start of a span to the start of the next; none: the length",
    )
    tail: Literal["keep", "drop"] = Field(
        "keep", description="whether the rest at the end, shorter than length, is a sample too"
    )

    @model_validator(mode="after")
    def _cut_or_whole(self) -> Self:
        if self.length is None and {"stride", "tail"} & self.model_fields_set:
            raise ValueError("stride and tail need length: give it too")
        return self


class AudioConfig(Config):
    """Options of the modality `audio`."""

    length: float = Field(
        10.0,
        gt=0,
        description="length of a row in seconds, rounded down to one that the encoder accepts",
    )
    num_samples: int | None = Field(
        None,
        gt=0,
        description="length of a row in samples at the encoder's rate, instead of length",
    )
    crop: Literal["start", "center", "random"] = Field(
        "start",
        description=(
            "which part of longer audio is kept: the start, the center, or a random one (from seed"
            " and key)"
        ),
    )
    views: list[str] = Field(["plain"], min_length=1, description=VIEW_HELP)
    on_short: Literal["pad", "keep", "skip"] = Field(
        "pad",
        description=(
            "shorter audio is padded with silence to the length, or (keep) only to the next length"
            " that the encoder accepts, or skipped"
        ),
    )
    on_many_channels: Literal["skip", "mix"] = Field(
        "skip",
        description=("audio with more than two channels is skipped, or (mix) becomes their mean"),
    )
    peak_dbfs: float | None = Field(
        None,
        le=0,
        description=(
            "loudest value of every row, in decibels below full scale; none: levels stay as"
            " they are"
        ),
    )
    loudness_lufs: float | None = Field(
        None,
        ge=-70,
        le=0,
        description=(
            "integrated loudness of every row by ITU-R BS.1770-4, in LUFS; none: levels stay as"
            " they are"
        ),
    )
    on_loud: Literal["scale", "clip", "skip"] = Field(
        "scale",
        description=("a row that exceeds full scale is scaled down to it, clipped, or skipped"),
    )

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: list[str]) -> list[str]:
        for view in views:
            number = view.removeprefix("crop-")
            if view != "plain" and not (number != view and number.isdecimal() and int(number) >= 1):
                raise ValueError(f"unknown view {view!r}; known: {VIEW_HELP}")
        if len(set(views)) < len(views):
            raise ValueError("a view is listed twice")
        return views

    @model_validator(mode="after")
    def _one_of_each(self) -> Self:
        if self.num_samples is not None and "length" in self.model_fields_set:
            raise ValueError("give length (seconds) or num_samples, not both")
        if self.peak_dbfs is not None and self.loudness_lufs is not None:
            raise ValueError("give peak_dbfs or loudness_lufs, not both")
        return self


def _build_audio_clips(config: AudioClipsConfig, context: BuildContext) -> Source:
    from latentkit_audio.clips import open_audio_clips

    return open_audio_clips(config, context)


def _build_audio(config: AudioConfig, context: BuildContext) -> Modality:
    from latentkit_audio.modality import AudioModality

    return AudioModality(config, context)


@hookimpl
def latentkit_sources() -> SourceSpec:
    """Declare the source `audio-clips`."""
    return SourceSpec(
        "audio-clips",
        "audio files below a folder, long ones cut into spans",
        AudioClipsConfig,
        _build_audio_clips,
    )


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    """Declare the modality `audio`."""
    return ModalitySpec(
        "audio",
        "audio, as waveforms or log-mel spectrograms",
        AudioConfig,
        _build_audio,
        version=2,
        suffixes=AUDIO_SUFFIXES,
    )

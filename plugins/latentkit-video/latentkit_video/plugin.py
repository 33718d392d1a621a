"""Plugin declarations. Importing this loads no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from latentkit.contracts import (
    BuildContext,
    InputSpec,
    Modality,
    ModalitySpec,
    SizeRule,
    Source,
    SourceSpec,
    neutral,
)
from latentkit.hooks import hookimpl
from latentkit.kit import FolderConfig, FramingConfig

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".mkv", ".webm", ".avi", ".divx", ".mpg", ".mpeg", ".mpe"),
    *(".m1v", ".m2v", ".m2p", ".vob", ".ts", ".m2t", ".m2ts", ".mts", ".wmv", ".asf", ".flv"),
    *(".f4v", ".ogv", ".3gp", ".3g2", ".mxf", ".dv", ".y4m", ".ivf", ".rm", ".rmvb", ".wtv"),
    *(".h264", ".264", ".hevc", ".h265", ".265"),
)


class VideoConfig(FramingConfig):
    """Options of the modality `video`."""

    frames: int = Field(
        17,
        ge=1,
        description="frames of a clip; video models only accept certain counts, such as 4 * k + 1",
    )
    fps: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="frames per second, chosen by time stamps; none: the video's own frames",
    )
    frame_stride: int = Field(1, ge=1, description="use every n-th of these frames")
    color: Literal["auto", "bt601", "bt709", "bt2020"] = Field(
        "auto",
        description=(
            "color matrix of videos without a tag; auto: BT.709 from 1280 x 720 on, else BT.601"
        ),
    )
    max_pixels: int = neutral(
        178_956_970,
        gt=0,
        description="videos with more pixels in a frame are refused before they are decoded",
    )

    def fitted(self, spec: InputSpec) -> dict[str, Any]:
        """Return options left at a default that the encoder doesn't accept, with the nearest value
        it does.
        """
        options = super().fitted(spec)
        frames = spec.sizes.get("T", SizeRule()).nearest(self.frames)
        if "frames" not in self.model_fields_set and frames != self.frames:
            options["frames"] = frames
        return options


class VideoClipsConfig(FolderConfig):
    """Options of the source `video-clips`: the videos below a folder, each cut into clips. The key
    is path and time, as in "a.mp4#t=4,6.5".
    """

    suffixes: list[str] = Field(
        list(VIDEO_SUFFIXES),
        min_length=1,
        description="endings of the files to use, in any case, with the dot",
    )
    seconds: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="length of a clip, in seconds"
    )
    frames: int | None = Field(
        None, ge=1, description="length of a clip, in frames, instead of seconds"
    )
    fps: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="rate at which `frames` are counted; none: each video's own",
    )
    stride: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description=(
            "distance from the start of a clip to the start of the next, in the unit of its"
            " length; none: its length"
        ),
    )
    tail: Literal["drop", "keep", "overlap"] = Field(
        "drop",
        description=(
            "the rest at a video's end: dropped, kept as a shorter clip, or a whole clip that"
            " overlaps the previous one"
        ),
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.seconds is None) == (self.frames is None):
            raise ValueError("give the length of a clip, as seconds or as frames")
        if self.fps is not None and self.frames is None:
            raise ValueError("fps only counts frames; with seconds it has no effect")
        return self


def _build_video(config: VideoConfig, context: BuildContext) -> Modality:
    from latentkit_video.modality import VideoModality

    return VideoModality(config, context)


def _build_video_clips(config: VideoClipsConfig, context: BuildContext) -> Source:
    from latentkit_video.source import open_video_clips

    return open_video_clips(config, context)


@hookimpl
def latentkit_sources() -> SourceSpec:
    """Declare the source `video-clips`."""
    return SourceSpec(
        "video-clips", "videos below a folder, cut into clips", VideoClipsConfig, _build_video_clips
    )


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    """Declare the modality `video`."""
    return ModalitySpec(
        "video",
        "clips of videos, in sRGB",
        VideoConfig,
        _build_video,
        version=2,
        suffixes=VIDEO_SUFFIXES,
    )

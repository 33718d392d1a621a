"""The plugin is found, and modality and source keep their contracts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from latentkit_video.plugin import (
    VideoClipsConfig,
    VideoConfig,
    latentkit_modalities,
    latentkit_sources,
)
from pydantic import ValidationError
from videos import encode, numbered

from latentkit.contracts import InputSpec, Sample, SizeRule
from latentkit.kit import discover
from latentkit.testing import ModalityContract, SourceContract


class TestVideo(ModalityContract):
    spec = latentkit_modalities()
    input = InputSpec(
        3, (-1.0, 1.0), {"T": SizeRule(4, 1), "H": SizeRule(8), "W": SizeRule(8)}, axes="CTHW"
    )
    axes = "CTHW"

    @pytest.fixture(autouse=True)
    def _make_videos(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        folder = tmp_path_factory.mktemp("videos")
        self.videos = [
            encode(folder / "wide.mp4", numbered(12, 48, 80)),
            encode(folder / "tall.mkv", numbered(12, 80, 48)),
        ]

    def make_config(self, tmp_path: Path) -> VideoConfig:
        buckets = {"area": 64 * 64, "step": 16, "aspect": 2.0}
        return VideoConfig.model_validate(
            {
                "frames": 5,
                "buckets": buckets,
                "crop": "random",
                "views": ["plain", "hflip", "crop-1"],
            }
        )

    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        wide, tall = self.videos
        return [
            Sample("wide", wide, span=(0.2, 1.0)),
            Sample("tall", tall),
            Sample("bytes", wide.read_bytes()),
        ]


class TestVideoClips(SourceContract):
    spec = latentkit_sources()

    def make_config(self, tmp_path: Path) -> VideoClipsConfig:
        if not (tmp_path / "videos").exists():
            encode(tmp_path / "videos" / "long" / "a.mp4", numbered(25))
            encode(tmp_path / "videos" / "b.mkv", numbered(10))
            (tmp_path / "videos" / "damaged.mp4").write_bytes(b"no video")
        return VideoClipsConfig(path="videos", seconds=1.0)


def test_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("modality", "video").distribution == "latentkit-video"
    assert registry.find("source", "video-clips").distribution == "latentkit-video"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-video"
    ]


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (VideoClipsConfig, {"path": "videos"}, "give the length of a clip"),
        (
            VideoClipsConfig,
            {"path": "videos", "seconds": 1.0, "frames": 9},
            "give the length of a clip",
        ),
        (
            VideoClipsConfig,
            {"path": "videos", "seconds": 1.0, "fps": 9.0},
            "fps only counts frames",
        ),
        (VideoConfig, {"fps": 0.0}, "greater than 0"),
        (VideoConfig, {"fps": float("inf")}, "finite"),
        (VideoConfig, {"frames": 0}, "greater than or equal to 1"),
        (VideoConfig, {"size": 0}, "at least 1 pixel"),
        (VideoConfig, {"crop_scale": (0.9, 0.5)}, "the smaller one first"),
        (VideoConfig, {"views": ["vflip"]}, "unknown view 'vflip'"),
        (VideoConfig, {"views": ["plain", "plain"]}, "listed twice"),
        (VideoConfig, {"size": 64, "buckets": {"area": 4096, "step": 16}}, "size or buckets"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    config: type[VideoConfig | VideoClipsConfig], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config.model_validate(options)

"""Clips of a folder of videos: which, and under which names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from latentkit_video.plugin import VideoClipsConfig
from latentkit_video.source import open_video_clips
from videos import encode, make_modality, numbered, numbers_of

from latentkit.contracts import BuildContext, Source
from latentkit.errors import SampleError, SourceError
from latentkit.sources.spans import SHORTENED


def open_clips(folder: Path, **options: Any) -> Source:
    """The source over a folder."""
    return open_video_clips(
        VideoClipsConfig.model_validate({"path": str(folder), **options}), BuildContext()
    )


def keys(source: Source) -> list[str]:
    """All keys."""
    return [entry.key for entry in source.entries()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 2.5 s at 10 frames a second with a caption, and one of 1 s at 20 in a folder."""
    folder = tmp_path_factory.mktemp("clips")
    encode(folder / "a.mp4", numbered(25))
    (folder / "a.txt").write_text("a walk")
    encode(folder / "dogs" / "b.mkv", numbered(20), rate=20)
    return folder


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"seconds": 1.0}, ["a.mp4#t=0,1", "a.mp4#t=1,2", "dogs/b.mkv#t=0,1"]),
        (
            {"frames": 10},
            ["a.mp4#t=0,1", "a.mp4#t=1,2", "dogs/b.mkv#t=0,0.5", "dogs/b.mkv#t=0.5,1"],
        ),
        ({"frames": 5, "fps": 5.0}, ["a.mp4#t=0,1", "a.mp4#t=1,2", "dogs/b.mkv#t=0,1"]),
        (
            {"seconds": 1.0, "stride": 0.75},
            ["a.mp4#t=0,1", "a.mp4#t=0.75,1.75", "a.mp4#t=1.5,2.5", "dogs/b.mkv#t=0,1"],
        ),
        ({"frames": 20, "stride": 5}, ["a.mp4#t=0,2", "a.mp4#t=0.5,2.5", "dogs/b.mkv#t=0,1"]),
        (
            {"seconds": 1.0, "tail": "keep"},
            ["a.mp4#t=0,1", "a.mp4#t=1,2", "a.mp4#t=2,2.5", "dogs/b.mkv#t=0,1"],
        ),
        (
            {"seconds": 1.0, "tail": "overlap"},
            ["a.mp4#t=0,1", "a.mp4#t=1,2", "a.mp4#t=1.5,2.5", "dogs/b.mkv#t=0,1"],
        ),
        ({"seconds": 2.0}, ["a.mp4#t=0,2", "dogs/b.mkv"]),
    ],
)
def test_videos_are_cut_into_clips_named_by_path_and_time(
    folder: Path, options: dict[str, Any], expected: list[str]
) -> None:
    assert keys(open_clips(folder, **options)) == expected


def test_clips_have_the_attributes_of_their_video(folder: Path) -> None:
    source = open_clips(folder, seconds=1.0)
    assert [source[number].span for number in (1, 2)] == [(1.0, 2.0), (0.0, 1.0)]
    assert [dict(source[number].attributes) for number in (1, 2)] == [
        {"text": "a walk"},
        {"label": "dogs"},
    ]


def test_a_clip_of_as_many_frames_as_the_model_takes_fills_it(folder: Path) -> None:
    source = open_clips(folder, frames=9)
    modality = make_modality(frames=9)
    found = [
        numbers_of(view)
        for number in range(len(source))
        for view in modality.prepare(source[number])
    ]
    assert found == [list(range(9)), list(range(9, 18)), list(range(9)), list(range(9, 18))]


def test_a_video_whose_header_has_no_length_is_measured(tmp_path: Path) -> None:
    encode(tmp_path / "late.mkv", numbered(25), times=[5000 + 100 * number for number in range(25)])
    encode(tmp_path / "raw.ts", numbered(25))
    assert keys(open_clips(tmp_path, seconds=1.2)) == [
        "late.mkv#t=0,1.2",
        "late.mkv#t=1.2,2.4",
        "raw.ts#t=0,1.2",
        "raw.ts#t=1.2,2.4",
    ]


def test_videos_that_cannot_be_cut_stay_samples_with_a_reason(tmp_path: Path) -> None:
    encode(tmp_path / "short.mp4", numbered(3))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    source = open_clips(tmp_path, frames=4)
    assert keys(source) == ["empty.mp4", "short.mp4", "text.mp4"]
    for number, reason in enumerate(
        ["empty file: 0 bytes", "3 frames from 0.000 s to 0.300 s", "not a video"]
    ):
        with pytest.raises(SampleError, match=reason):
            list(make_modality().prepare(source[number]))


def test_what_is_left_out_of_clips_is_said(folder: Path) -> None:
    def said(**options: Any) -> list[tuple[str, int, str]]:
        source = open_video_clips(VideoClipsConfig(path=str(folder), **options), BuildContext())
        return [(remark.text, remark.count, remark.example) for remark in source.remarks()]

    assert (SHORTENED, 1, "a.mp4") in said(seconds=1.0), "0.5 s of 2.5 s"
    assert (SHORTENED, 2, "a.mp4") in said(seconds=0.7)
    assert SHORTENED not in [text for text, _, _ in said(seconds=1.0, tail="keep")]
    assert SHORTENED not in [text for text, _, _ in said(frames=5)]
    assert "dogs/b.mkv" in [example for _, _, example in said(seconds=2.0)], "shorter than a clip"


def test_a_folder_without_videos_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(
        SourceError, match=r"no file below .* ends in \.mp4, .*others there: \.jpg \(1\)"
    ):
        open_clips(tmp_path, seconds=1.0)

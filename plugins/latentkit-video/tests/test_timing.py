"""Which frames a clip has: told by their gray levels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from videos import encode, make_modality, numbered, numbers_of, prepare_one

from latentkit.contracts import InputSpec, Sample, SizeRule
from latentkit.errors import RecipeError, SampleError


def test_a_clip_has_the_videos_own_frames_from_the_start_on(ten_a_second: Path) -> None:
    assert numbers_of(prepare_one(ten_a_second)) == [0, 1, 2, 3]


def test_every_third_frame(ten_a_second: Path) -> None:
    prepared = prepare_one(ten_a_second, frame_stride=3)
    assert numbers_of(prepared) == [0, 3, 6, 9]
    assert prepared.geometry["fps"] == pytest.approx(10 / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "first"), [(0.0, 0), (0.3, 3), (0.96, 10), (1.04, 10), (3.7, 37), (5.6, 56)]
)
def test_a_span_begins_at_the_frame_nearest_to_its_start(
    ten_a_second: Path, start: float, first: int
) -> None:
    assert numbers_of(prepare_one(ten_a_second, (start, start + 0.4))) == list(
        range(first, first + 4)
    )
    assert numbers_of(prepare_one(ten_a_second, (start, start + 0.4), fps=10.0)) == list(
        range(first, first + 4)
    )


@pytest.mark.parametrize(
    ("fps", "stride", "expected"),
    [
        (5.0, 1, [20, 22, 24, 26]),
        (10.0, 2, [20, 22, 24, 26]),
        (2.5, 1, [20, 24, 28, 32]),
        (20.0, 1, [20, 20, 21, 21]),
        (9.99, 1, [20, 21, 22, 23]),
        (10.01, 1, [20, 21, 22, 23]),
    ],
)
def test_a_rate_picks_frames_by_their_times(
    ten_a_second: Path, fps: float, stride: int, expected: list[int]
) -> None:
    assert (
        numbers_of(prepare_one(ten_a_second, (2.0, 6.0), fps=fps, frame_stride=stride)) == expected
    )


def test_with_a_variable_rate_the_frame_on_screen_is_taken(tmp_path: Path) -> None:
    video = encode(
        tmp_path / "a.mkv", numbered(8), times=[0, 100, 200, 1000, 1100, 1150, 1200, 3000]
    )
    assert numbers_of(prepare_one(video, fps=4.0, frames=9)) == [0, 2, 2, 2, 3, 6, 6, 6, 6]
    assert numbers_of(prepare_one(video, frames=8)) == list(
        range(8)
    ), "without a rate, each frame counts once"


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.ts", "a.avi", "a.mov"])
def test_times_count_from_the_first_frame_in_every_container(tmp_path: Path, name: str) -> None:
    codec, options = (
        ("mpeg4", {"qmin": "1", "qmax": "1"})
        if name.endswith("avi")
        else ("libx264", {"qp": "0", "g": "10", "bf": "2"})
    )
    pix_fmt = "yuv420p" if codec == "mpeg4" else "yuv444p"
    video = encode(
        tmp_path / name, numbered(30), rate=10, codec=codec, pix_fmt=pix_fmt, options=options
    )
    assert numbers_of(prepare_one(video, (1.5, 1.9))) == [15, 16, 17, 18]
    assert numbers_of(prepare_one(video, (0.0, 1.6), fps=2.5)) == [0, 4, 8, 12]


def test_a_video_that_begins_late_begins_at_its_first_frame(tmp_path: Path) -> None:
    video = encode(
        tmp_path / "a.mkv", numbered(20), times=[5000 + 100 * number for number in range(20)]
    )
    assert numbers_of(prepare_one(video, (1.0, 1.4))) == [10, 11, 12, 13]


@pytest.mark.parametrize(
    "options",
    [{"g": "250", "bf": "0"}, {"g": "12", "bf": "3", "x264-params": "open-gop=1"}, {"g": "1"}],
)
def test_seeking_gives_the_frames_of_decoding_from_the_start(
    tmp_path: Path, options: dict[str, str]
) -> None:
    video = encode(tmp_path / "a.mp4", numbered(60), options={"qp": "0", **options})
    modality = make_modality()
    for start in range(0, 56, 5):
        [prepared] = modality.prepare(Sample("a", video, span=(start / 10, start / 10 + 0.4)))
        assert numbers_of(prepared) == list(range(start, start + 4))


def test_threads_that_read_parts_of_one_video_get_equal_clips(ten_a_second: Path) -> None:
    modality = make_modality(fps=7.0, views=["plain", "crop-1"], crop_scale=(0.5, 1.0))
    samples = [
        Sample(f"a#{start}", ten_a_second, span=(start / 10, start / 10 + 1))
        for start in range(0, 50, 3)
    ]
    expected = [[view.tensor for view in modality.prepare(sample)] for sample in samples]
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda sample: [view.tensor for view in modality.prepare(sample)], samples)
        )
    for one, other in zip(expected, found, strict=True):
        for first, second in zip(one, other, strict=True):
            assert isinstance(first, torch.Tensor)
            assert isinstance(second, torch.Tensor)
            assert torch.equal(first, second)


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("span", "frames"),
    [(None, 61), ((5.7, 6.1), 4), ((5.9, 6.3), 4), ((7.0, 9.0), 4), ((1.0, 1.3), 4)],
)
def test_a_clip_is_never_shorter_than_asked_for(
    ten_a_second: Path, span: tuple[float, float] | None, frames: int
) -> None:
    with pytest.raises(SampleError, match=f"a clip has {frames}"):
        prepare_one(ten_a_second, span, frames=frames)
    with pytest.raises(SampleError, match=rf"{frames} frames at 10 per second"):
        prepare_one(ten_a_second, span, frames=frames, fps=10.0)


def test_the_last_frames_of_a_video_are_a_clip(ten_a_second: Path) -> None:
    assert numbers_of(prepare_one(ten_a_second, (5.6, 6.0))) == [56, 57, 58, 59]
    assert numbers_of(prepare_one(ten_a_second, (5.6, 6.0), fps=10.0)) == [56, 57, 58, 59]
    assert numbers_of(prepare_one(ten_a_second, frames=60, fps=10.0)) == list(range(60))


@pytest.mark.parametrize(
    ("rule", "frames", "near"),
    [
        (SizeRule(4, 1), 16, "13 and 17"),
        (SizeRule(8, 1), 13, "9 and 17"),
        (SizeRule(17, 5, 5), 17, "5 and 22"),
        (SizeRule(1, 0, 1, 1), 2, "1"),
    ],
)
def test_a_count_that_the_model_cannot_take_is_refused_when_built(
    rule: SizeRule, frames: int, near: str
) -> None:
    spec = InputSpec(3, sizes={"T": rule}, axes="CTHW")
    with pytest.raises(
        RecipeError,
        match=rf"modality\.with\.frames: {frames} is not a number of frames .*nearest: {near}$",
    ):
        make_modality(spec, frames=frames)
    make_modality(spec, frames=int(near.split()[0]))


@pytest.mark.parametrize(
    "spec", [InputSpec(3), InputSpec(4, axes="CTHW"), InputSpec(1, axes="CDHW")]
)
def test_an_encoder_of_something_else_is_refused_when_built(spec: InputSpec) -> None:
    with pytest.raises(RecipeError, match="makes 3 channels on the axes CTHW"):
        make_modality(spec)

"""Rates, channels and lengths: what is heard in a file is what is in the row, at the place the row
says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from latentkit_audio.clips import open_audio_clips
from latentkit_audio.plugin import AudioClipsConfig

from latentkit.contracts import BuildContext, Sample
from latentkit.errors import RecipeError
from latentkit.sources.spans import SpanSource


def loudest_hz(row: Any, rate_hz: int) -> float:
    """Frequency of the strongest bin of a (L,) row's spectrum."""
    spectrum = np.abs(np.fft.rfft(row * np.hanning(len(row))))
    return float(np.argmax(spectrum) * rate_hz / len(row))


# ---------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("from_hz", "to_hz"),
    [(8000, 44_100), (44_100, 16_000), (48_000, 44_100), (22_051, 32_000), (96_000, 8000)],
)
def test_a_sine_keeps_frequency_and_level_at_another_rate(
    write_sound: Any,
    open_audio: Any,
    prepare_one: Any,
    make_sine: Callable[..., Any],
    from_hz: int,
    to_hz: int,
) -> None:
    path = write_sound("a.wav", make_sine(1000, 1.0, from_hz), from_hz, "FLOAT")
    prepared = prepare_one(open_audio(to_hz, length=1.0, on_short="skip"), path)
    row = prepared.tensor[0].numpy()
    assert loudest_hz(row, to_hz) == 1000
    middle = slice(to_hz // 10, -to_hz // 10)
    assert np.abs(row[middle] - make_sine(1000, 1.0, to_hz)[middle]).max() < 1e-5
    assert prepared.geometry["sample_rate_hz"] == from_hz


def test_what_the_lower_rate_cannot_hold_is_gone(
    write_sound: Any, open_audio: Any, prepare_one: Any, make_sine: Callable[..., Any]
) -> None:
    """A tone above half the new rate leaves no mirror image of itself: 100 dB down."""
    path = write_sound("a.wav", make_sine(9000, 1.0, 44_100), 44_100, "FLOAT")
    row = prepare_one(open_audio(16_000, length=1.0), path).tensor["audio"][0].numpy()
    assert np.abs(row[800:-800]).max() < 0.5e-5


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44_100, 16_000), (8000, 44_100)])
def test_a_span_is_resampled_as_part_of_the_whole(
    write_sound: Any, open_audio: Any, prepare_one: Any, from_hz: int, to_hz: int
) -> None:
    """No fade and no click at its ends: both sides of the span are looked at."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * from_hz).astype(np.float32)
    path = write_sound("a.wav", noise, from_hz, "FLOAT")
    whole = soxr.resample(noise, from_hz, to_hz, quality="VHQ")
    row = (
        prepare_one(open_audio(to_hz, length=1.0, on_short="skip"), path, span=(1.0, 2.0))
        .tensor[0]
        .numpy()
    )
    assert np.abs(row - whole[to_hz : 2 * to_hz]).max() < 1e-5


# ---------------------------------------------------------------- channels


def test_mono_becomes_two_equal_channels(
    write_sound: Any, open_audio: Any, prepare_one: Any, make_sine: Callable[..., Any]
) -> None:
    path = write_sound("a.wav", make_sine(440, 0.5, 8000), 8000)
    row = prepare_one(open_audio(8000, channels=2, length=0.5), path).tensor["audio"]
    assert row.shape == (2, 4000)
    assert row[0].equal(row[1])


def test_stereo_becomes_the_mean_of_its_channels(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    path = write_sound("a.wav", np.array([[0.5, 0.25], [0.5, -0.5], [0.0, 0.75]]), 8000)
    row = prepare_one(open_audio(8000, num_samples=3), path).tensor["audio"]
    assert row[0].tolist() == [0.375, 0.0, 0.375]


def test_many_channels_are_mixed_where_the_recipe_says_so(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    path = write_sound("a.wav", np.tile([0.0, 0.25, 0.5, 0.75], (8, 1)), 8000)
    prepared = prepare_one(
        open_audio(8000, channels=2, num_samples=8, on_many_channels="mix"), path
    )
    assert prepared.tensor["audio"].unique().tolist() == [0.375]
    assert prepared.geometry["channels"] == 4


# ---------------------------------------------------------------- lengths


def test_a_short_sound_is_padded_with_silence_that_the_mask_shows(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    prepared = prepare_one(
        open_audio(8000, length=1.0, multiple=1000), write_sound("a.wav", np.full(3500, 0.25), 8000)
    )
    row, mask = prepared.tensor["audio"], prepared.tensor["mask"]
    assert (prepared.bucket, tuple(row.shape), tuple(mask.shape)) == ("8000", (1, 8000), (8000,))
    assert (mask.sum().item(), mask[:3500].all().item()) == (3500, True)
    assert row[0, :3500].unique().tolist() == [0.25]
    assert row[0, 3500:].unique().tolist() == [0.0]
    assert (prepared.geometry["start"], prepared.geometry["end"]) == (0.0, 0.4375)


def test_a_short_sound_keeps_its_length_up_to_the_next_one_allowed(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    modality = open_audio(8000, length=1.0, multiple=1000, on_short="keep")
    for num_frames, expected in ((3500, 4000), (4000, 4000), (1, 1000), (8000, 8000), (9000, 8000)):
        prepared = prepare_one(modality, write_sound("a.wav", np.full(num_frames, 0.25), 8000))
        assert prepared.tensor["audio"].shape == (1, expected)
        assert prepared.tensor["mask"].sum() == min(num_frames, 8000)


@pytest.mark.parametrize(
    ("length", "expected"), [(1.0, 7000), (0.875, 7000), (0.8749, 6000), (0.3, 2000)]
)
def test_a_length_is_rounded_down_to_one_the_encoder_takes(
    write_sound: Any, open_audio: Any, prepare_one: Any, length: float, expected: int
) -> None:
    modality = (
        open_audio(8000, length=length, multiple=1000)
        if length < 1
        else open_audio(7999, length=length, multiple=1000)
    )
    assert prepare_one(modality, write_sound("a.wav", np.zeros(16_000), 8000)).tensor[
        "audio"
    ].shape == (1, expected)


@pytest.mark.parametrize(
    ("options", "nearest"),
    [
        ({"num_samples": 8100}, r"8000 \(1 s\) and 9000 \(1.125 s\)"),
        ({"num_samples": 10}, r"1000 \(0.125 s\)"),
        ({"length": 0.1}, "1000 "),
    ],
)
def test_a_length_that_the_encoder_does_not_take_is_refused(
    open_audio: Any, options: dict[str, Any], nearest: str
) -> None:
    with pytest.raises(
        RecipeError, match=f"modality.with.{next(iter(options))}: .* nearest: {nearest}"
    ):
        open_audio(8000, multiple=1000, **options)


def test_spans_of_one_length_have_one_length_at_another_rate(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    """Whatever the span's first frame rounds to: no row is a sample short."""
    path, modality = write_sound("a.wav", np.zeros(60_000), 11_025), open_audio(
        44_100, length=0.333, on_short="skip"
    )
    for number in range(12):
        span = (round(number * 0.333, 6), round((number + 1) * 0.333, 6))
        assert prepare_one(modality, path, span).tensor.shape == (1, 14_685)


# ---------------------------------------------------------------- crops and views


def ramp(num_frames: int) -> Any:
    """Frames whose value is their place."""
    return np.arange(num_frames) / num_frames


@pytest.mark.parametrize(("crop", "first"), [("start", 0), ("center", 3000)])
def test_a_crop_is_the_part_it_says(
    write_sound: Any, open_audio: Any, prepare_one: Any, crop: str, first: int
) -> None:
    row = prepare_one(
        open_audio(8000, num_samples=2000, crop=crop),
        write_sound("a.wav", ramp(8000), 8000, "FLOAT"),
    ).tensor["audio"]
    assert np.abs(row[0].numpy() - ramp(8000)[first : first + 2000]).max() < 1e-6


def test_random_crops_follow_seed_key_and_view(write_sound: Any, open_audio: Any) -> None:
    """The same in every build, others for another seed, key or view, and within a span where the
    sample is one.
    """
    path = write_sound("a.wav", ramp(8000), 8000, "FLOAT")

    def starts(seed: int, key: str, span: tuple[float, float] | None = None) -> list[float]:
        modality = open_audio(
            8000, num_samples=1000, crop="random", views=["plain", "crop-1", "crop-2"], seed=seed
        )
        views = list(modality.prepare(Sample(key, path, span=span)))
        for view in views:
            assert view.tensor["audio"][0, 0].item() == pytest.approx(
                view.geometry["start"], abs=1e-6
            )
        return [view.geometry["start"] for view in views]

    first = starts(0, "a")
    assert first == starts(0, "a")
    assert len({*first, *starts(1, "a"), *starts(0, "b")}) == 9
    assert all(0.5 <= start <= 0.625 for start in starts(0, "a", span=(0.5, 0.75)))


# ---------------------------------------------------------------- source


def test_long_files_become_spans_and_short_ones_stay(tmp_path: Path, write_sound: Any) -> None:
    write_sound("sounds/long.wav", np.zeros(20_000), 8000)
    write_sound("sounds/short.flac", np.zeros(4000), 8000)
    (tmp_path / "sounds" / "broken.mp3").write_bytes(b"broken")

    def keys(**options: Any) -> list[str]:
        config = AudioClipsConfig(path="sounds", **options)
        return [
            entry.key
            for entry in open_audio_clips(config, BuildContext(recipe_dir=tmp_path)).entries()
        ]

    assert keys() == ["broken.mp3", "long.wav", "short.flac"]
    assert keys(length=1.0) == [
        "broken.mp3",
        "long.wav#t=0,1",
        "long.wav#t=1,2",
        "long.wav#t=2,2.5",
        "short.flac#t=0,0.5",
    ]
    assert keys(length=1.0, tail="drop") == [
        "broken.mp3",
        "long.wav#t=0,1",
        "long.wav#t=1,2",
        "short.flac",
    ]
    config = AudioClipsConfig(path="sounds", length=1.0, tail="drop")
    source = open_audio_clips(config, BuildContext(recipe_dir=tmp_path))
    assert isinstance(source, SpanSource)
    said = {remark.text: (remark.count, remark.example) for remark in source.remarks()}
    damaged = "not cut into spans, because they are damaged or shorter than one"
    assert said[damaged] == (2, "broken.mp3")
    assert said["the end after the last span is left out (tail: drop)"] == (1, "long.wav")
    assert keys(length=1.0, stride=0.75, tail="drop")[1:4] == [
        "long.wav#t=0,1",
        "long.wav#t=0.75,1.75",
        "long.wav#t=1.5,2.5",
    ]

"""Levels: what the recipe asks for, measured by a standard's own test signals, and nothing clipped
unsaid.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from latentkit_audio.levels import measure_loudness
from pyloudnorm import Meter

from latentkit.errors import SampleError

RATE_HZ = 48_000


def tone(make_sine: Callable[..., Any], dbfs: float, seconds: float) -> Any:
    """1 kHz in both channels, at a level in decibels below full scale."""
    return np.tile(make_sine(1000, seconds, RATE_HZ, 10 ** (dbfs / 20))[:, None], 2)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(-23.0, 20)], -23.0),  # EBU Tech 3341 (2016), table 1, case 1
        ([(-33.0, 20)], -33.0),  # case 2
        ([(-36.0, 10), (-23.0, 60), (-36.0, 10)], -23.0),  # case 3
        ([(-72.0, 10), (-36.0, 10), (-23.0, 60), (-36.0, 10), (-72.0, 10)], -23.0),  # case 4
    ],
)
def test_loudness_is_that_of_the_standards_test_signals(
    make_sine: Callable[..., Any], levels: list[Any], expected: float
) -> None:
    frames = np.concatenate([tone(make_sine, dbfs, seconds) for dbfs, seconds in levels])
    assert measure_loudness(frames, RATE_HZ) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("seconds", [2.0, 0.25])
def test_a_row_gets_the_loudness_asked_for(
    write_sound: Any,
    open_audio: Any,
    prepare_one: Any,
    make_sine: Callable[..., Any],
    seconds: float,
) -> None:
    """From -33 to -23 LUFS is 10 dB, within the 0.1 LU that the standard's meters may differ by;
    short sounds included.
    """
    path = write_sound("a.wav", tone(make_sine, -33.0, seconds), RATE_HZ, "FLOAT")
    prepared = prepare_one(
        open_audio(RATE_HZ, channels=2, length=seconds, loudness_lufs=-23.0, on_short="skip"), path
    )
    assert prepared.geometry["gain_db"] == pytest.approx(10.0, abs=0.2)
    assert prepared.tensor.abs().max().item() == pytest.approx(10 ** (-23 / 20), rel=0.03)


@pytest.mark.parametrize("rate_hz", [8000, 22_050, 44_100, 48_000])
def test_a_sound_of_any_length_under_a_block_is_one_block(rate_hz: int) -> None:
    """BS.1770-4: -0.691 + 10 lg of the mean square of what its two filters leave, over the whole
    sound; at every length.
    """
    filters = Meter(rate_hz)._filters.values()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(0.4 * rate_hz) + 2)
    for num_frames in {
        *range(1, 20),
        *np.random.default_rng(1).integers(40, len(noise), 40),
        len(noise) - 2,
        len(noise) - 3,
    }:
        frames = noise[:num_frames, None]
        for stage in filters:
            frames = stage.apply_filter(frames[:, 0])[:, None]
        expected = -0.691 + 10 * np.log10(np.mean(frames**2))
        if expected > -70 and num_frames < 0.4 * rate_hz:
            assert measure_loudness(noise[:num_frames, None], rate_hz) == pytest.approx(
                expected, abs=1e-6
            ), num_frames
        assert np.isfinite(measure_loudness(noise[:num_frames], rate_hz)) or expected < -70


def test_a_row_gets_the_peak_asked_for(write_sound: Any, open_audio: Any, prepare_one: Any) -> None:
    path = write_sound("a.wav", np.array([0.1, -0.25, 0.2]), 8000, "FLOAT")
    prepared = prepare_one(open_audio(8000, num_samples=3, peak_dbfs=-6.0206), path)
    assert prepared.tensor["audio"][0].tolist() == pytest.approx([0.2, -0.5, 0.4], abs=1e-5)
    assert prepared.geometry["gain_db"] == pytest.approx(6.0206, abs=1e-3)


@pytest.mark.parametrize("options", [{"peak_dbfs": -1.0}, {"loudness_lufs": -23.0}])
def test_silence_stays_silence(
    write_sound: Any, open_audio: Any, prepare_one: Any, options: dict[str, float]
) -> None:
    prepared = prepare_one(
        open_audio(8000, length=1.0, **options), write_sound("a.wav", np.zeros(8000), 8000)
    )
    assert not prepared.tensor["audio"].any()
    assert prepared.geometry["gain_db"] == 0.0


# ---------------------------------------------------------------- beyond full scale

TOO_LOUD = np.array([2.0, -1.0, 0.5, -1.5])


def test_what_is_too_loud_is_turned_down(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    prepared = prepare_one(
        open_audio(8000, num_samples=4), write_sound("a.wav", TOO_LOUD, 8000, "FLOAT")
    )
    assert prepared.tensor["audio"][0].tolist() == [1.0, -0.5, 0.25, -0.75]
    assert (prepared.geometry["gain_db"], prepared.geometry["num_clipped"]) == (
        pytest.approx(-6.0206, abs=1e-4),
        0,
    )


def test_clipped_values_are_counted(write_sound: Any, open_audio: Any, prepare_one: Any) -> None:
    prepared = prepare_one(
        open_audio(8000, num_samples=4, on_loud="clip"),
        write_sound("a.wav", TOO_LOUD, 8000, "FLOAT"),
    )
    assert prepared.tensor["audio"][0].tolist() == [1.0, -1.0, 0.5, -1.0]
    assert (prepared.geometry["gain_db"], prepared.geometry["num_clipped"]) == (0.0, 2)


def test_what_is_too_loud_is_left_out_where_the_recipe_says_so(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    with pytest.raises(SampleError, match=r"6\.02 dB beyond full scale"):
        prepare_one(
            open_audio(8000, num_samples=4, on_loud="skip"),
            write_sound("a.wav", TOO_LOUD, 8000, "FLOAT"),
        )


# ---------------------------------------------------------------- what is said of a row


@pytest.mark.parametrize(
    ("frames", "options", "remarks"),
    [
        (np.full(4, 0.5), {}, []),
        (TOO_LOUD, {}, ["turned down, because it exceeded full scale"]),
        (TOO_LOUD, {"on_loud": "clip"}, ["clipped, because it exceeded full scale"]),
        (np.zeros(4), {}, ["silent: all its values are 0"]),
        (np.full(2, 0.5), {}, ["shorter than the row: padded with silence, which the mask marks"]),
        (np.full(2, 0.5), {"on_short": "keep"}, ["shorter than the row: kept at its own length"]),
        (np.full((4, 2), 0.5), {}, ["2 channels mixed to their mean"]),
        (np.full((4, 6), 0.5), {"on_many_channels": "mix"}, ["6 channels mixed to their mean"]),
    ],
)
def test_a_row_says_what_was_done_to_it(
    write_sound: Any,
    open_audio: Any,
    prepare_one: Any,
    frames: Any,
    options: dict[str, Any],
    remarks: list[str],
) -> None:
    prepared = prepare_one(
        open_audio(8000, num_samples=4, **options), write_sound("a.wav", frames, 8000, "FLOAT")
    )
    assert list(prepared.remarks) == remarks

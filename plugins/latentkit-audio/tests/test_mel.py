"""Spectrograms have the values of librosa 0.11, and of the formulas it was published with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from latentkit_audio.mel import LogMel, mel_filters

from latentkit.contracts import MelSpec, Sample
from latentkit.errors import RecipeError

LTX2 = MelSpec(bins=64, n_fft=1024, hop=160)
HTK = MelSpec(bins=64, n_fft=1024, hop=160, scale="htk", norm=None)
NARROW = MelSpec(bins=20, n_fft=512, hop=128, low_hz=80.0, high_hz=7600.0, scale="htk")

FILTERS = [
    (
        LTX2,
        16_000,
        4.095880166,
        {
            (2, 7): 0.00769141084,
            (2, 8): 0.0149470521,
            (10, 33): 0.0191523004,
            (63, 488): 0.00273002149,
        },
    ),
    (HTK, 16_000, 500.4744773, {(2, 7): 0.258919179, (2, 8): 0.0, (63, 491): 0.991801262}),
    (
        NARROW,
        22_050,
        0.4646946066,
        {(2, 7): 0.00170135754, (2, 8): 0.00469852518, (19, 156): 0.00119185878},
    ),
]
"""Spec, rate in Hz, sum of all weights and some of them: of `librosa.filters.mel`."""


@pytest.mark.parametrize(("spec", "rate_hz", "total", "weights"), FILTERS)
def test_filters_are_librosas(
    spec: MelSpec, rate_hz: int, total: float, weights: dict[tuple[int, int], float]
) -> None:
    filters = mel_filters(spec, rate_hz)
    assert filters.shape == (spec.bins, spec.n_fft // 2 + 1)
    assert float(filters.double().sum()) == pytest.approx(total, rel=1e-6)
    assert {place: filters[place].item() for place in weights} == pytest.approx(
        weights, rel=1e-5, abs=1e-9
    )


def two_tones() -> Any:
    """0.4 s at 16 kHz."""
    seconds = np.arange(6400) / 16_000
    return (
        0.5 * np.sin(2 * np.pi * 440 * seconds) + 0.25 * np.cos(2 * np.pi * 3000 * seconds)
    ).astype(np.float32)


def test_log_mel_is_librosas() -> None:
    """Of `np.log(np.maximum(librosa.feature.melspectrogram(power=1.0, pad_mode="reflect"), 1e-5))`;
    places are (bin, frame).
    """
    mel = LogMel(LTX2, 16_000)(torch.from_numpy(two_tones())[None])
    assert (tuple(mel.shape), mel.dtype) == ((1, 41, 64), torch.float32)
    expected = {
        (0, 0): -0.98210,
        (11, 5): -5.60209,
        (12, 20): -6.70914,
        (40, 20): -11.51293,
        (11, 40): -0.49138,
    }
    assert {place: mel[0, place[1], place[0]].item() for place in expected} == pytest.approx(
        expected, abs=2e-4
    )
    assert float(mel.double().mean()) == pytest.approx(-8.595756, abs=1e-4)


def test_power_squares_the_magnitudes() -> None:
    waveform = torch.from_numpy(two_tones())[None]
    one, two = (
        LogMel(MelSpec(64, 1024, 160, power=power, floor=1e-20), 16_000)(waveform)
        for power in (1.0, 2.0)
    )
    spectrum = np.abs(np.fft.rfft(two_tones()[3200 - 512 : 3200 + 512] * np.hanning(1025)[:-1]))
    filters = mel_filters(LTX2, 16_000).numpy()
    assert one[0, 20, 8].item() == pytest.approx(math.log(filters[8] @ spectrum), abs=1e-3)
    assert two[0, 20, 8].item() == pytest.approx(math.log(filters[8] @ spectrum**2), abs=1e-3)


def test_bins_beyond_half_the_rate_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"reach from 0\.0 to 9000\.0 Hz; audio of 16000 Hz"):
        mel_filters(MelSpec(64, 1024, 160, high_hz=9000.0), 16_000)


# ---------------------------------------------------------------- as rows


def test_rows_have_as_many_frames_as_the_encoder_takes(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    """0.4 s are 41 frames, 0.39 s would be 40: the encoder takes 4k + 1, so 37."""
    path = write_sound("a.wav", two_tones(), 16_000, "FLOAT")
    for length, frames in ((0.4, 41), (0.39, 37)):
        prepared = prepare_one(open_audio(16_000, multiple=4, mel=LTX2, length=length), path)
        assert prepared.bucket == f"{frames}x64"
        assert prepared.tensor["audio"].shape == (1, frames, 64)
        assert prepared.tensor["mask"].shape == (frames,)
        assert prepared.tensor["mask"].all()


def test_frames_of_padding_are_masked(write_sound: Any, open_audio: Any, prepare_one: Any) -> None:
    """0.2 s of 0.4 s: frames 0 to 20 are centered on sound, frame 20 on its end."""
    path = write_sound("a.wav", two_tones()[:3200], 16_000, "FLOAT")
    prepared = prepare_one(open_audio(16_000, multiple=4, mel=LTX2, length=0.4), path)
    assert prepared.tensor["mask"].tolist() == [True] * 21 + [False] * 20
    assert prepared.tensor["audio"][0, 24:].unique().tolist() == pytest.approx([math.log(1e-5)])


def test_a_row_is_never_shorter_than_a_window_needs(
    write_sound: Any, open_audio: Any, prepare_one: Any
) -> None:
    modality = open_audio(16_000, multiple=4, mel=LTX2, length=0.4, on_short="keep")
    prepared = prepare_one(modality, write_sound("a.wav", two_tones()[:10], 16_000))
    assert prepared.bucket == "5x64"
    with pytest.raises(RecipeError, match=r"nearest: 640 \(0.04 s\)"):
        open_audio(16_000, multiple=4, mel=LTX2, length=0.01)


def test_threads_of_torch_do_not_change_a_value(write_sound: Any, open_audio: Any) -> None:
    path, modality = write_sound("a.wav", two_tones(), 16_000), open_audio(
        16_000, multiple=4, mel=LTX2, length=0.4
    )
    before, rows = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2):
            torch.set_num_threads(num_threads)
            rows.append(next(modality.prepare(Sample("a", path))).tensor["audio"])
    finally:
        torch.set_num_threads(before)
    assert rows[0].equal(rows[1])

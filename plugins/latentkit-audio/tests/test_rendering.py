"""What is rendered is what was prepared: by the samples of the wav file, and the pixels of the
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from latentkit_audio.modality import AudioModality
from latentkit_audio.plugin import AudioConfig
from PIL import Image

from latentkit.contracts import BuildContext, InputSpec, MelSpec

RATE_HZ = 8000


def test_sounds_follow_each_other_with_silence_between(
    open_audio: Any, make_sine: Callable[..., Any], tmp_path: Path
) -> None:
    """Source and reconstruction a quarter of a second apart, the next row after three quarters:
    each has its own tone.
    """
    tones = [
        torch.from_numpy(np.tile(make_sine(hz, 0.5, RATE_HZ), (2, 1))) for hz in (440, 880, 1320)
    ]
    modality = open_audio(RATE_HZ, channels=2)
    modality.render([tones[:2], tones[2:]], tmp_path / "new" / "preview.wav")
    written, rate_hz = soundfile.read(tmp_path / "new" / "preview.wav", always_2d=True)
    assert (modality.preview_suffix, rate_hz, written.shape) == (
        ".wav",
        RATE_HZ,
        (4000 * 3 + 2000 + 6000, 2),
    )
    assert not written[4000:6000].any()
    assert not written[10_000:16_000].any()
    for start, hz in ((0, 440), (6000, 880), (16_000, 1320)):
        spectrum = np.abs(np.fft.rfft(written[start : start + 4000, 1]))
        assert np.argmax(spectrum) * RATE_HZ / 4000 == hz
        assert np.abs(written[start : start + 4000, 0] - make_sine(hz, 0.5, RATE_HZ)).max() < 1e-4


def test_another_range_is_heard_at_full_scale(tmp_path: Path) -> None:
    spec = InputSpec(channels=1, range=(0.0, 4.0), sample_rate_hz=RATE_HZ, axes="CL")
    AudioModality(AudioConfig(), BuildContext(input=spec)).render(
        [[torch.tensor([[0.0, 1.0, 2.0, 4.0, 9.0, torch.nan]])]], tmp_path / "a"
    )
    written, _ = soundfile.read(tmp_path / "a")
    assert written.tolist() == pytest.approx([-1.0, -0.5, 0.0, 1.0, 1.0, 0.0], abs=1e-4)


def test_a_spectrogram_is_a_picture_with_high_bins_on_top(open_audio: Any, tmp_path: Path) -> None:
    mel = torch.full((2, 5, 16), -10.0)
    mel[0, 1, 0], mel[1, 4, 15] = 2.0, 2.0
    modality = open_audio(16_000, channels=2, mel=MelSpec(16, 1024, 160))
    modality.render([[mel, mel], [mel]], tmp_path / "preview.png")
    picture = np.asarray(Image.open(tmp_path / "preview.png"))
    assert modality.preview_suffix == ".png"
    assert picture.shape == (4 + 2 * (100 + 4), 4 + 2 * (5 + 4))
    first, second = picture[4:52, 4:9], picture[56:104, 4:9]
    assert [tuple(place) for place in np.argwhere(first)] == [(45, 1), (46, 1), (47, 1)]
    assert [tuple(place) for place in np.argwhere(second)] == [(0, 4), (1, 4), (2, 4)]


@pytest.mark.parametrize("rows", [[], [[]]])
def test_nothing_to_render_is_an_error(open_audio: Any, tmp_path: Path, rows: list[Any]) -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        open_audio(RATE_HZ).render(rows, tmp_path / "a.wav")


def test_another_shape_is_an_error(open_audio: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"CL tensors with 1 channels, got shape \(2, 10\)"):
        open_audio(RATE_HZ).render([[torch.zeros(2, 10)]], tmp_path / "a.wav")

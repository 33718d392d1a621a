"""The plugin is found, and what it adds keeps the contracts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from latentkit_audio.plugin import (
    AudioClipsConfig,
    AudioConfig,
    latentkit_modalities,
    latentkit_sources,
)
from pydantic import ValidationError

from latentkit.contracts import InputSpec, MelSpec, Sample, SizeRule
from latentkit.errors import RecipeError
from latentkit.kit import discover
from latentkit.testing import ModalityContract, SourceContract

WAVEFORM = InputSpec(
    channels=2, sizes={"L": SizeRule(320, minimum=320)}, sample_rate_hz=16_000, axes="CL"
)
SPECTROGRAM = InputSpec(
    channels=2,
    range=(math.log(1e-5), 4.0),
    sizes={"T": SizeRule(4, 1)},
    sample_rate_hz=16_000,
    axes="CTM",
    mel=MelSpec(bins=16, n_fft=1024, hop=160),
)


class AudioContract(ModalityContract):
    """Of one kind of input."""

    spec = latentkit_modalities()
    config: AudioConfig

    def make_config(self, tmp_path: Path) -> AudioConfig:
        return self.config

    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        rng = np.random.default_rng(0)
        long, short = rng.uniform(-0.9, 0.9, (9000, 2)), rng.uniform(-0.9, 0.9, 6000)
        soundfile.write(tmp_path / "long.wav", long, 22_050)
        soundfile.write(tmp_path / "short.flac", short, 16_000)
        return [
            Sample("long.wav", tmp_path / "long.wav"),
            Sample("short.flac", (tmp_path / "short.flac").read_bytes()),
            Sample("long.wav#t=0.1,0.25", tmp_path / "long.wav", span=(0.1, 0.25)),
        ]


class TestWaveforms(AudioContract):
    input, axes = WAVEFORM, "CL"
    config = AudioConfig(length=0.3, views=["plain", "crop-1", "crop-2"])


class TestWaveformsOfTheirOwnLength(AudioContract):
    input, axes = WAVEFORM, "CL"
    config = AudioConfig(length=0.4, on_short="keep", crop="center", peak_dbfs=-1.0)


class TestWaveformsWithoutMask(AudioContract):
    input, axes = WAVEFORM, "CL"
    config = AudioConfig(num_samples=1600, on_short="skip", crop="random")


class TestSpectrograms(AudioContract):
    input, axes = SPECTROGRAM, "CTM"
    config = AudioConfig(length=0.3, views=["plain", "crop-1"])

    def test_tensors_follow_the_encoders_range(self, tmp_path: Path) -> None:
        """Doesn't hold: logarithms of a spectrum are what they are, whatever range an encoder says
        it takes.
        """


class TestAudioClips(SourceContract):
    spec = latentkit_sources()

    def make_config(self, tmp_path: Path) -> AudioClipsConfig:
        (tmp_path / "deep").mkdir(exist_ok=True)
        for number, name in enumerate(("a.wav", "b.flac", "deep/c.ogg")):
            soundfile.write(tmp_path / name, np.full(2000 * (number + 1), 0.1), 8000)
        (tmp_path / "broken.wav").write_bytes(b"no sound")
        return AudioClipsConfig(path=str(tmp_path), length=0.2, stride=0.15)


def test_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("modality", "audio").distribution == "latentkit-audio"
    assert registry.find("source", "audio-clips").distribution == "latentkit-audio"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-audio"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 1.0, "num_samples": 100}, "length .seconds. or num_samples, not both"),
        ({"peak_dbfs": -1.0, "loudness_lufs": -23.0}, "peak_dbfs or loudness_lufs, not both"),
        ({"views": ["plain", "hflip"]}, "unknown view 'hflip'; known: plain, crop-1"),
        ({"views": ["crop-1", "crop-1"]}, "listed twice"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        AudioConfig.model_validate(options)


def test_stride_without_length_is_refused() -> None:
    with pytest.raises(ValidationError, match="give it too"):
        AudioClipsConfig(path="sounds", stride=1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"axes": "CHW"}, "the encoder takes CHW"),
        ({"channels": 6}, "the encoder takes 6"),
        ({"sample_rate_hz": None}, "doesn't declare its sample rate"),
        (
            {"axes": "CTM", "mel": MelSpec(bins=16, n_fft=1024, hop=160, high_hz=9000.0)},
            "from 0.0 to 9000.0 Hz; audio of 16000 Hz",
        ),
    ],
)
def test_encoders_that_take_no_such_sound_are_refused(
    tmp_path: Path, wrong: dict[str, object], message: str
) -> None:
    contract = TestWaveforms()
    contract.input = replace(WAVEFORM, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=message):
        contract.make_modality(tmp_path)

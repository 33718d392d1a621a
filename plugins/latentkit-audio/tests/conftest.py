"""Sounds made here: sines in any format, and what is measured of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from latentkit_audio.modality import AudioModality
from latentkit_audio.plugin import AudioConfig

from latentkit.contracts import BuildContext, InputSpec, MelSpec, Prepared, Sample, SizeRule

Array = npt.NDArray[np.floating]


def sine(hz: float, seconds: float, rate_hz: int, amplitude: float = 0.5) -> Array:
    """(frames,) float64, starting at 0."""
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)


@pytest.fixture(scope="session")
def make_sine() -> Callable[..., Array]:
    """Frequency in Hz, length in seconds and rate in Hz to frames."""
    return sine


@pytest.fixture
def write_sound(tmp_path: Path) -> Callable[..., Path]:
    """Frames, (n,) or (n, channels), to a file; its name decides the format, `subtype` the rest."""

    def write(name: str, frames: Array, rate_hz: int, subtype: str | None = None) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, frames, rate_hz, subtype=subtype)
        return path

    return write


@pytest.fixture(scope="session")
def open_audio() -> Callable[..., AudioModality]:
    """A modality for an encoder of waveforms, or of spectrograms with `mel`; further arguments are
    the config's.
    """

    def build(
        rate_hz: int,
        channels: int = 1,
        multiple: int = 1,
        mel: MelSpec | None = None,
        seed: int = 0,
        **options: object,
    ) -> AudioModality:
        sizes = (
            {"L": SizeRule(multiple, minimum=multiple)}
            if mel is None
            else {"T": SizeRule(multiple, 1)}
        )
        spec = InputSpec(
            channels,
            sizes=sizes,
            sample_rate_hz=rate_hz,
            axes="CL" if mel is None else "CTM",
            mel=mel,
        )
        return AudioModality(
            AudioConfig.model_validate(options), BuildContext(seed=seed, input=spec)
        )

    return build


@pytest.fixture(scope="session")
def prepare_one() -> Callable[..., Prepared]:
    """The one view of a file, or of a span of it."""

    def prepare(
        modality: AudioModality, path: Path, span: tuple[float, float] | None = None
    ) -> Prepared:
        (prepared,) = modality.prepare(Sample(path.name, path, span=span))
        return prepared

    return prepare

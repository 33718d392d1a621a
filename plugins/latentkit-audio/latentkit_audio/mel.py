"""Log-mel spectrograms, computed like librosa 0.11 and torchaudio's `MelSpectrogram` with
`center=True`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentkit.contracts import MelSpec
from latentkit.errors import RecipeError

# Slaney, Auditory Toolbox (1998): linear up to 1,000 Hz, which is mel 15, then 27 mel for each
# factor of 6.4.
SLANEY_HZ_PER_MEL = 200 / 3
SLANEY_BREAK_HZ = 1000.0
SLANEY_BREAK_MEL = 15.0
SLANEY_MEL_PER_NEPER = 27 / math.log(6.4)


class LogMel:
    """Converts waveforms to log(max(mel, floor)).

    Args:
        spec: bins, windows and scale.
        rate_hz: sample rate of the waveforms.

    Raises:
        RecipeError: bins exceed half the rate.
    """

    def __init__(self, spec: MelSpec, rate_hz: int) -> None:
        self._spec = spec
        self._window = torch.hann_window(spec.n_fft, dtype=torch.float64).float()
        self._filters = mel_filters(spec, rate_hz)

    def __call__(self, waveform: Tensor) -> Tensor:
        """Convert (C, L) float32 to (C, 1 + L // hop, bins) float32. Frame t is centered on sample
        t * hop; the ends are mirrored.
        """
        spec = self._spec
        spectrum = torch.stft(
            waveform,
            spec.n_fft,
            spec.hop,
            window=self._window,
            pad_mode="reflect",
            return_complex=True,
        )
        magnitude = spectrum.abs().pow_(spec.power) if spec.power != 1.0 else spectrum.abs()
        return (
            (self._filters @ magnitude).clamp_(min=spec.floor).log_().transpose(1, 2).contiguous()
        )


def mel_filters(spec: MelSpec, rate_hz: int) -> Tensor:
    """Return weights from frequencies to mel bins, (bins, n_fft / 2 + 1) float32: triangles that
    overlap by half.

    Raises:
        RecipeError: as `LogMel`.
    """
    high_hz = rate_hz / 2 if spec.high_hz is None else spec.high_hz
    if not 0 <= spec.low_hz < high_hz <= rate_hz / 2:
        raise RecipeError(
            f"the encoder's mel bins reach from {spec.low_hz} to {high_hz} Hz; audio of {rate_hz}"
            f" Hz has 0 to {rate_hz / 2}"
        )
    ends = torch.tensor(
        [_hz_to_mel(spec.low_hz, spec), _hz_to_mel(high_hz, spec)], dtype=torch.float64
    )
    corners = _mel_to_hz(
        torch.linspace(ends[0].item(), ends[1].item(), spec.bins + 2, dtype=torch.float64), spec
    )
    frequencies = torch.linspace(0, rate_hz / 2, spec.n_fft // 2 + 1, dtype=torch.float64)
    rising = (frequencies - corners[:-2, None]) / (corners[1:-1] - corners[:-2])[:, None]
    falling = (corners[2:, None] - frequencies) / (corners[2:] - corners[1:-1])[:, None]
    weights = torch.minimum(rising, falling).clamp(min=0)
    if spec.norm == "slaney":  # every triangle has an area of 1 Hz
        weights *= (2 / (corners[2:] - corners[:-2]))[:, None]
    return weights.float()


def _hz_to_mel(hz: float, spec: MelSpec) -> float:
    if spec.scale == "htk":
        return 2595 * math.log10(1 + hz / 700)
    if hz < SLANEY_BREAK_HZ:
        return hz / SLANEY_HZ_PER_MEL
    return SLANEY_BREAK_MEL + SLANEY_MEL_PER_NEPER * math.log(hz / SLANEY_BREAK_HZ)


def _mel_to_hz(mel: Tensor, spec: MelSpec) -> Tensor:
    if spec.scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    beyond = SLANEY_BREAK_HZ * ((mel - SLANEY_BREAK_MEL) / SLANEY_MEL_PER_NEPER).exp()
    return torch.where(mel < SLANEY_BREAK_MEL, mel * SLANEY_HZ_PER_MEL, beyond)

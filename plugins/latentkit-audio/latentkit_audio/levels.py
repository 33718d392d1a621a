"""Channels and loudness of frames: to as many channels as wanted, to the level wanted, and never
beyond full scale unsaid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from latentkit.errors import SampleError
from latentkit_audio.forward import Frames

BLOCK_SECONDS = 0.4
"""Over which BS.1770-4 measures; a shorter sound is one block."""


SILENT = "silent: all its values are 0"
TURNED_DOWN = "turned down, as it went beyond full scale"
CLIPPED = "clipped, as it went beyond full scale"


def mix_down(frames: Frames, num_channels: int, on_many: Literal["skip", "mix"]) -> Frames:
    """Frames of one channel or of `num_channels`: the mean of all channels where there are others,
    which may cancel what is out of phase.

    Raises:
        SampleError: more than two channels under `on_many: skip`.
    """
    found = frames.shape[1]
    if found in (1, num_channels):
        return frames
    if found > 2 and on_many == "skip":
        raise SampleError(
            f"{found} channels; with on_many_channels: mix it would become the mean of them"
        )
    mean: Frames = frames.mean(axis=1, keepdims=True, dtype=np.float32)
    return mean


@dataclass(frozen=True)
class Leveled:
    """Frames at the level wanted.

    Args:
        frames: from -1 to 1.
        gain_db: by which they were amplified.
        num_clipped: values that lay beyond full scale.
        remarks: what a user should know.
    """

    frames: Frames
    gain_db: float = 0.0
    num_clipped: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Levels:
    """How loud rows are made.

    Args:
        rate_hz: of the frames.
        peak_dbfs: of the loudest value; None leaves it.
        loudness_lufs: integrated loudness; None leaves it.
        on_loud: what becomes of a row beyond full scale.
    """

    rate_hz: int
    peak_dbfs: float | None
    loudness_lufs: float | None
    on_loud: Literal["scale", "clip", "skip"]

    def apply(self, frames: Frames, own: Frames) -> Leveled:
        """Frames from -1 to 1, and what was done to them. Silence stays silence.

        Args:
            frames: a row.
            own: the frames of the file that it was made of, to count those that are no good.

        Raises:
            SampleError: not finite, or beyond full scale under `on_loud: skip`.
        """
        peak = float(max(frames.max(), -frames.min()))
        if not math.isfinite(peak):
            num_wrong = own.size - np.count_nonzero(np.isfinite(own))
            raise SampleError(
                f"{num_wrong} of {own.size} values are nan or infinite"
                if num_wrong
                else "values too large for float32"
            )
        if not peak:
            return Leveled(frames, remarks=(SILENT,))
        gain = self._wanted_gain(frames, peak)
        remarks: tuple[str, ...] = ()
        if peak * gain > 1:
            if self.on_loud == "skip":
                raise SampleError(
                    f"{20 * math.log10(peak * gain):.2f} dB beyond full scale; with on_loud: scale"
                    " it would be turned down"
                )
            gain, remarks = (
                (1 / peak, (TURNED_DOWN,)) if self.on_loud == "scale" else (gain, (CLIPPED,))
            )
        elif gain == 1:
            return Leveled(frames)
        louder = frames * np.float32(gain)
        num_clipped = int(np.count_nonzero(np.abs(louder) > 1)) if self.on_loud == "clip" else 0
        louder.clip(-1, 1, out=louder)  # scaled ones may lie a rounding beyond
        return Leveled(louder, round(20 * math.log10(gain), 4), num_clipped, remarks)

    def _wanted_gain(self, frames: Frames, peak: float) -> float:
        if self.peak_dbfs is not None:
            return 10 ** (self.peak_dbfs / 20) / peak
        if self.loudness_lufs is not None and math.isfinite(
            loudness := measure_loudness(frames, self.rate_hz)
        ):
            return float(10 ** ((self.loudness_lufs - loudness) / 20))
        return 1.0


def measure_loudness(frames: npt.NDArray[np.floating], rate_hz: int) -> float:
    """Integrated loudness in LUFS by ITU-R BS.1770-4, -inf for what is silent to it; a sound under
    0.4 s counts as one block.
    """
    from pyloudnorm import Meter  # loads scipy, for those who ask for it

    if len(frames) >= BLOCK_SECONDS * rate_hz:
        return float(
            Meter(rate_hz, block_size=BLOCK_SECONDS).integrated_loudness(frames.astype(np.float64))
        )
    # Half a frame more, of which a whole one must be there, or rounding makes the block longer than
    # the sound or a frame shorter.
    meter = Meter(rate_hz, block_size=(len(frames) + 0.5) / rate_hz, overlap=0.0)
    longer = np.pad(frames.astype(np.float64), ((0, 1), *[(0, 0)] * (frames.ndim - 1)))
    return float(meter.integrated_loudness(longer)) + 10 * math.log10(1 + 0.5 / len(frames))

"""Channels and loudness of frames: mixes to the needed channels, adjusts the level, and never
exceeds full scale without a remark.
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
"""Length of BS.1770-4's blocks; shorter audio is one block."""


SILENT = "silent: all its values are 0"
TURNED_DOWN = "turned down, because it exceeded full scale"
CLIPPED = "clipped, because it exceeded full scale"


def mix_down(frames: Frames, num_channels: int, on_many: Literal["skip", "mix"]) -> Frames:
    """Return frames with one channel or `num_channels`. Any other number becomes the mean of all
    channels, in which opposite phases may cancel.

    Raises:
        SampleError: there are more than two channels and `on_many` is `skip`.
    """
    found = frames.shape[1]
    if found in (1, num_channels):
        return frames
    if found > 2 and on_many == "skip":
        raise SampleError(f"{found} channels; with on_many_channels: mix their mean is used")
    mean: Frames = frames.mean(axis=1, keepdims=True, dtype=np.float32)
    return mean


@dataclass(frozen=True)
class LeveledFrames:
    """Frames at the wanted level.

    Args:
        frames: values from -1 to 1.
        gain_db: amplification.
        num_clipped: values that exceeded full scale.
        remarks: what a user should know.
    """

    frames: Frames
    gain_db: float = 0.0
    num_clipped: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Levels:
    """The loudness that rows get.

    Args:
        rate_hz: rate of the frames.
        peak_dbfs: level of the loudest value; None keeps it.
        loudness_lufs: integrated loudness; None keeps it.
        on_loud: what is done with a row that exceeds full scale.
    """

    rate_hz: int
    peak_dbfs: float | None
    loudness_lufs: float | None
    on_loud: Literal["scale", "clip", "skip"]

    def apply(self, frames: Frames, own: Frames) -> LeveledFrames:
        """Return frames from -1 to 1, and what was done to them. Silence stays silence.

        Args:
            frames: a row.
            own: the file's frames that the row was made from, to count invalid values.

        Raises:
            SampleError: values aren't finite, or exceed full scale and `on_loud` is `skip`.
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
            return LeveledFrames(frames, remarks=(SILENT,))
        gain = self._wanted_gain(frames, peak)
        remarks: tuple[str, ...] = ()
        if peak * gain > 1:
            if self.on_loud == "skip":
                raise SampleError(
                    f"{20 * math.log10(peak * gain):.2f} dB beyond full scale; with on_loud: scale"
                    " it is turned down"
                )
            gain, remarks = (
                (1 / peak, (TURNED_DOWN,)) if self.on_loud == "scale" else (gain, (CLIPPED,))
            )
        elif gain == 1:
            return LeveledFrames(frames)
        louder = frames * np.float32(gain)
        num_clipped = int(np.count_nonzero(np.abs(louder) > 1)) if self.on_loud == "clip" else 0
        louder.clip(-1, 1, out=louder)  # rounding may exceed the limit
        return LeveledFrames(louder, round(20 * math.log10(gain), 4), num_clipped, remarks)

    def _wanted_gain(self, frames: Frames, peak: float) -> float:
        """Return the factor for the wanted peak or loudness."""
        if self.peak_dbfs is not None:
            return 10 ** (self.peak_dbfs / 20) / peak
        if self.loudness_lufs is not None and math.isfinite(
            loudness := measure_loudness(frames, self.rate_hz)
        ):
            return float(10 ** ((self.loudness_lufs - loudness) / 20))
        return 1.0


def measure_loudness(frames: npt.NDArray[np.floating], rate_hz: int) -> float:
    """Return integrated loudness in LUFS by ITU-R BS.1770-4; -inf for silence. Audio under 0.4 s
    counts as one block.
    """
    from pyloudnorm import Meter  # loads scipy, so only when needed

    if len(frames) >= BLOCK_SECONDS * rate_hz:
        return float(
            Meter(rate_hz, block_size=BLOCK_SECONDS).integrated_loudness(frames.astype(np.float64))
        )
    # Half a frame is added, because rounding could make the block longer than the audio or a
    # frame too short.
    meter = Meter(rate_hz, block_size=(len(frames) + 0.5) / rate_hz, overlap=0.0)
    longer = np.pad(frames.astype(np.float64), ((0, 1), *[(0, 0)] * (frames.ndim - 1)))
    return float(meter.integrated_loudness(longer)) + 10 * math.log10(1 + 0.5 / len(frames))

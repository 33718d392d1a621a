"""What an encoder says of itself: what it takes, what it gives, and how that is normalised. Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)
"""What log-variances are clamped to, as diffusers' own posteriors do it."""


@dataclass(frozen=True)
class SizeRule:
    """Sizes allowed on one axis: `multiple * k + offset`, between `minimum` and `maximum` (None: no limit)."""

    multiple: int = 1
    offset: int = 0
    minimum: int = 1
    maximum: int | None = None

    def allows(self, size: int) -> bool:
        """Whether `size` fits the rule."""
        fits = size >= self.minimum and (self.maximum is None or size <= self.maximum)
        return fits and (size - self.offset) % self.multiple == 0

    def __str__(self) -> str:
        text = f"{self.multiple} * k + {self.offset}" if self.offset else f"a multiple of {self.multiple}"
        return text + (f", at most {self.maximum}" if self.maximum is not None else "")


@dataclass(frozen=True)
class MelSpec:
    """How sound becomes the log-mel spectrogram that an encoder takes: log(max(mel, floor)).

    Args:
        bins: mel bins, the last axis of the input.
        n_fft: samples in one window, a Hann window of that length.
        hop: samples from one window to the next.
        power: of the spectrum's magnitude, 1.0 or 2.0.
        low_hz, high_hz: of the lowest and highest bin; high_hz None is half the sample rate.
        scale: of frequencies, "slaney" or "htk".
        norm: of the bins' areas: "slaney", or None for none.
        floor: smallest value whose logarithm is taken.
    """

    bins: int
    n_fft: int
    hop: int
    power: float = 1.0
    low_hz: float = 0.0
    high_hz: float | None = None
    scale: Literal["slaney", "htk"] = "slaney"
    norm: Literal["slaney"] | None = "slaney"
    floor: float = 1e-5


@dataclass(frozen=True)
class InputSpec:
    """What an encoder takes.

    Args:
        channels: of the input (3 for RGB).
        range: lowest and highest value, such as (-1.0, 1.0).
        sizes: rule per axis letter ("H", "W", "T", "L"); an axis left out is free.
        sample_rate_hz: of audio; None elsewhere.
        axes: one letter per axis of one input, without the batch: "CHW", "CTHW" (video), "CDHW" (volume), "CL" (sound), "CTM" (mel).
        mel: of a spectrogram that is taken instead of sound; None elsewhere.
        takes_mask: whether `encode` wants prepared rows with a mask as a mapping of batches, "mask" among them; else it gets the one
            other tensor alone.
    """

    channels: int
    range: tuple[float, float] = (-1.0, 1.0)
    sizes: Mapping[str, SizeRule] = field(default_factory=dict)
    sample_rate_hz: int | None = None
    axes: str = "CHW"
    mel: MelSpec | None = None
    takes_mask: bool = False


@dataclass(frozen=True)
class LatentLayout:
    """Shape and kind of an encoder's latents.

    Args:
        name: of the tensor when datasets are joined, such as "latent" or "text-embedding".
        kind: "gaussian" (mean and logvar), "deterministic" ("latent") or "quantised" ("indices").
        axes: one letter per axis of one latent, without the batch: "CHW", "CTHW", "CL", "LC".
        channels: C of the latent.
        downscale: input size over latent size, one number for all axes but C, or one per axis but C, in their order; a latent axis has the
            quotient rounded up, so that 4 fits films of 4 k + 1 frames.
        ragged_axis: letter of the axis whose length differs from row to row; None when there is none.
    """

    name: str
    kind: Literal["gaussian", "deterministic", "quantised"]
    axes: str
    channels: int
    downscale: int | tuple[int | float, ...]
    ragged_axis: str | None = None


@dataclass(frozen=True)
class Normalization:
    """latent = (fold(z) - shift) * scale, applied when latents are read, never when they are stored.

    Args:
        shift: a number, one per folded channel, or a nested list shaped like one folded latent; of sizes beyond a latent's, the first
            are taken.
        scale: the same.
        fold: factor per latent axis letter that is moved into channels first, such as {"H": 2, "W": 2}; empty for none.
    """

    shift: float | Sequence[Any] = 0.0
    scale: float | Sequence[Any] = 1.0
    fold: Mapping[str, int] = field(default_factory=dict)

    def apply(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """Raw latents, (..., C, h, w) in any float dtype, to what a trainer sees, in the same dtype."""
        from latentkit.normalize import apply

        return apply(self, latents, axes)

    def invert(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """What a trainer sees back to raw latents, in the same dtype."""
        from latentkit.normalize import invert

        return invert(self, latents, axes)

"""An encoder's description of itself: its input, its latents, and their normalization.

Importing this loads no torch.

Plugins import these from `latentkit.contracts`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)
"""Range to which log-variances are clamped, as diffusers' own posteriors do."""


@dataclass(frozen=True)
class SizeRule:
    """The sizes allowed on one axis: `multiple * k + offset` for a whole number k, between
    `minimum` and `maximum` (None: no limit).
    """

    multiple: int = 1
    offset: int = 0
    minimum: int = 1
    maximum: int | None = None

    def allows(self, size: int) -> bool:
        """Return whether `size` fits the rule."""
        fits = size >= self.minimum and (self.maximum is None or size <= self.maximum)
        return fits and (size - self.offset) % self.multiple == 0

    def nearest(self, size: int) -> int:
        """Return the allowed size nearest to `size`, the smaller of two; `size` if none is allowed.
        """
        last = max(size, self.minimum) + self.multiple
        fitting = [other for other in range(1, last + 1) if self.allows(other)]
        return min(fitting, key=lambda other: abs(other - size), default=size)

    def neighbors(self, size: int) -> list[int]:
        """Return the next smaller and the next larger allowed size, as far as they exist."""
        smaller = (other for other in range(size - 1, 0, -1) if self.allows(other))
        last = max(size, self.minimum) + self.multiple
        larger = (other for other in range(size + 1, last + 1) if self.allows(other))
        return [found for found in (next(smaller, None), next(larger, None)) if found is not None]

    def __str__(self) -> str:
        text = (
            f"{self.multiple} * k + {self.offset}"
            if self.offset
            else f"a multiple of {self.multiple}"
        )
        return text + (f", at most {self.maximum}" if self.maximum is not None else "")


@dataclass(frozen=True)
class MelSpec:
    """How audio becomes the log-mel spectrogram that an encoder takes: log(max(mel, floor)).

    Args:
        bins: mel bins, the last axis of the input.
        n_fft: samples in one window, a Hann window of that length.
        hop: samples from one window to the next.
        power: exponent of the spectrum's magnitude, 1.0 or 2.0.
        low_hz, high_hz: limits of the lowest and highest bin; high_hz None is half the sample rate.
        scale: mel scale of frequencies, "slaney" or "htk".
        norm: normalization of the bins' areas: "slaney", or None for none.
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
    """The input that an encoder takes.

    Args:
        channels: channels of the input (3 for RGB).
        range: lowest and highest value, such as (-1.0, 1.0).
        sizes: rule per axis letter ("H", "W", "T", "L"); an axis left out is free.
        sample_rate_hz: sample rate of audio; None for other modalities.
        axes: one letter per axis of one input, without the batch: "CHW", "CTHW" (video), "CDHW"
            (volume), "CL" (audio), "CTM" (mel).
        mel: how the spectrogram is computed that the encoder takes instead of audio; None for
            other encoders.
        takes_mask: whether `encode` gets rows with a mask as a mapping of batches, with the key
            "mask"; if False, it gets the other tensor alone.
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
        name: name of the tensor when datasets are joined, such as "latent" or "text-embedding".
        kind: "gaussian" (mean and logvar), "deterministic" ("latent") or "quantised" ("indices").
        axes: one letter per axis of one latent, without the batch: "CHW", "CTHW", "CL", "LC".
        channels: channels C of the latent.
        downscale: input size over latent size, one number for all axes but C, or one per axis but
            C, in their order; a latent axis has the quotient rounded up, so that 4 fits videos of 4
            k + 1 frames.
        ragged_axis: letter of the axis whose length differs from row to row; None when there is
            none.
    """

    name: str
    kind: Literal["gaussian", "deterministic", "quantised"]
    axes: str
    channels: int
    downscale: int | tuple[int | float, ...]
    ragged_axis: str | None = None


@dataclass(frozen=True)
class Normalization:
    """latent = (fold(z) - shift) * scale, applied when latents are read, never when they are
    stored.

    Args:
        shift: a number, one number per folded channel, or a nested list shaped like one folded
            latent. Where it is larger than a latent, the first values are used.
        scale: as `shift`.
        fold: factor per latent axis letter that is moved into channels first, such as {"H": 2, "W":
            2}; empty for none.
    """

    shift: float | Sequence[Any] = 0.0
    scale: float | Sequence[Any] = 1.0
    fold: Mapping[str, int] = field(default_factory=dict)

    def apply(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """Normalize raw latents, (..., C, h, w) in any float dtype, for a trainer; same dtype."""
        from latentkit.contracts.normalization import apply

        return apply(self.shift, self.scale, self.fold, latents, axes)

    def invert(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """Convert normalized latents back to raw latents, in the same dtype."""
        from latentkit.contracts.normalization import invert

        return invert(self.shift, self.scale, self.fold, latents, axes)


# ---------------------------------------------------------------- sizes that can be read back


def readable_input(
    spec: InputSpec, layout: LatentLayout, normalization: Normalization
) -> InputSpec:
    """Return the spec with its sizes narrowed to those whose latents the normalization applies to.

    A fold by 2 applies to even latent sizes only; shifts and scales of 16 latent frames apply to at
    most 16 frames. An axis whose latent sizes don't grow in whole steps isn't narrowed: the first
    latents show whether they fit.
    """
    if layout.kind == "quantised":
        return spec
    axes = layout.axes[1:]
    factors = (
        layout.downscale if isinstance(layout.downscale, tuple) else (layout.downscale,) * len(axes)
    )
    sizes = dict(spec.sizes)
    for axis, downscale in zip(axes, factors, strict=False):
        fold, most = normalization.fold.get(axis, 1), _most_along(axis, layout, normalization)
        if axis not in spec.axes or downscale != int(downscale) or (fold == 1 and most is None):
            continue
        rule = sizes.get(axis, SizeRule())
        rule = _folding_rule(rule, int(downscale), fold)
        sizes[axis] = rule if most is None else _limited_rule(rule, most * fold * int(downscale))
    return replace(spec, sizes=sizes)


def shape_of(constant: float | Sequence[Any]) -> tuple[int, ...]:
    """Return the shape of a shift or scale: () for a number, (C,) for one number per channel."""
    if isinstance(constant, int | float) or not len(constant):
        return ()
    return (len(constant), *shape_of(constant[0]))


def _most_along(axis: str, layout: LatentLayout, normalization: Normalization) -> int | None:
    """Return the largest size along the axis for which shift and scale have values; None: any."""
    shapes = (shape_of(normalization.shift), shape_of(normalization.scale))
    place = layout.axes.index(axis)
    return min(
        (shape[place] for shape in shapes if len(shape) == len(layout.axes) and shape[place] > 1),
        default=None,
    )


def _folding_rule(rule: SizeRule, downscale: int, fold: int) -> SizeRule:
    """Return the rule for those sizes whose latent sizes the fold divides."""
    if rule.multiple % downscale:
        return rule
    step, first = rule.multiple // downscale, -(-rule.offset // downscale)
    start = next((count for count in range(fold) if (first + step * count) % fold == 0), None)
    if start is None:
        return rule
    return replace(
        rule,
        multiple=rule.multiple * fold // math.gcd(step, fold),
        offset=rule.offset + rule.multiple * start,
    )


def _limited_rule(rule: SizeRule, limit: int) -> SizeRule:
    largest = limit if rule.maximum is None else min(limit, rule.maximum)
    return replace(
        rule, maximum=next((size for size in range(largest, 0, -1) if rule.allows(size)), largest)
    )

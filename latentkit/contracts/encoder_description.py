"""What an encoder says of itself: what it takes, what it gives, and how that is normalized.

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
"""What log-variances are clamped to, as diffusers' own posteriors do it."""


@dataclass(frozen=True)
class SizeRule:
    """Sizes allowed on one axis: `multiple * k + offset`, between `minimum` and `maximum` (None: no
    limit).
    """

    multiple: int = 1
    offset: int = 0
    minimum: int = 1
    maximum: int | None = None

    def allows(self, size: int) -> bool:
        """Whether `size` fits the rule."""
        fits = size >= self.minimum and (self.maximum is None or size <= self.maximum)
        return fits and (size - self.offset) % self.multiple == 0

    def nearest(self, size: int) -> int:
        """The allowed size nearest to `size`, the smaller of two; `size` where none is allowed."""
        last = max(size, self.minimum) + self.multiple
        fitting = [other for other in range(1, last + 1) if self.allows(other)]
        return min(fitting, key=lambda other: abs(other - size), default=size)

    def neighbors(self, size: int) -> list[int]:
        """The next smaller and the next larger size that is allowed, as far as there are any."""
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
        axes: one letter per axis of one input, without the batch: "CHW", "CTHW" (video), "CDHW"
            (volume), "CL" (audio), "CTM" (mel).
        mel: of a spectrogram that is taken instead of audio; None elsewhere.
        takes_mask: whether `encode` wants prepared rows with a mask as a mapping of batches, "mask"
            among them; else it gets the one other tensor alone.
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
        shift: a number, one per folded channel, or a nested list shaped like one folded latent; of
            sizes beyond a latent's, the first are taken.
        scale: the same.
        fold: factor per latent axis letter that is moved into channels first, such as {"H": 2, "W":
            2}; empty for none.
    """

    shift: float | Sequence[Any] = 0.0
    scale: float | Sequence[Any] = 1.0
    fold: Mapping[str, int] = field(default_factory=dict)

    def apply(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """Raw latents, (..., C, h, w) in any float dtype, to what a trainer sees, in the same
        dtype.
        """
        from latentkit.contracts.normalization import apply

        return apply(self.shift, self.scale, self.fold, latents, axes)

    def invert(self, latents: Tensor, axes: str = "CHW") -> Tensor:
        """What a trainer sees back to raw latents, in the same dtype."""
        from latentkit.contracts.normalization import invert

        return invert(self.shift, self.scale, self.fold, latents, axes)


# ---------------------------------------------------------------- sizes that can be read back


def readable_input(
    spec: InputSpec, layout: LatentLayout, normalization: Normalization
) -> InputSpec:
    """Return the spec with its sizes narrowed to those whose latents the normalization applies to.

    A fold by 2 takes even latent sizes only; shifts and scales of 16 latent frames take no more
    frames than those. An axis whose latent sizes don't grow in whole steps stays as it is: what it
    can't take shows with the first latents (`batching.check_readable`).
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
    """Shape of a shift or scale: () of a number, (C,) of one per channel, or of nested lists."""
    if isinstance(constant, int | float) or not len(constant):
        return ()
    return (len(constant), *shape_of(constant[0]))


def _most_along(axis: str, layout: LatentLayout, normalization: Normalization) -> int | None:
    """The largest size along the axis that shift and scale have values for; None: any."""
    shapes = (shape_of(normalization.shift), shape_of(normalization.scale))
    place = layout.axes.index(axis)
    return min(
        (shape[place] for shape in shapes if len(shape) == len(layout.axes) and shape[place] > 1),
        default=None,
    )


def _folding_rule(rule: SizeRule, downscale: int, fold: int) -> SizeRule:
    """Sizes of the rule whose latent sizes the fold divides, where it grows in whole latents."""
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

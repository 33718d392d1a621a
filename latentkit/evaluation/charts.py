"""Line charts of an evaluation's report: converts numbers to positions in an SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MANY_DECADES = 1.5

Points = Sequence[tuple[float, float]]
Ticks = Sequence[tuple[float, str]]
"""Position in pixels, and text."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value, in pixels."""
        return self.start + self._share(value) * (self.end - self.start)

    def _share(self, value: float) -> float:
        low, high, found = (
            math.log(number) if self.log else number for number in (self.low, self.high, value)
        )
        return (found - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Return round values inside: powers of ten on a logarithmic scale with at least two of
        them, else about four steps of 1, 2 or 5.
        """
        if self.log:
            powers = [
                10.0**power
                for power in range(
                    math.ceil(math.log10(self.low) - 1e-9),
                    math.floor(math.log10(self.high) + 1e-9) + 1,
                )
            ]
            if len(powers) > 1:
                return powers[:: math.ceil(len(powers) / 6)]
        span = self.high - self.low
        if span <= 0:
            return [self.low]
        raw = span / 4
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class LineChart:
    """A chart as the page draws it; positions and sizes in pixels.

    Args:
        paths: class and SVG path of each line.
    """

    x_label: str
    y_label: str
    x_ticks: Ticks
    y_ticks: Ticks
    paths: Sequence[tuple[str, str]]
    width: int = 420
    height: int = 240
    left: int = 58
    right: int = 410
    top: int = 10
    bottom: int = 200

    @property
    def middle(self) -> float:
        """Return the middle of the horizontal axis."""
        return (self.left + self.right) / 2

    @property
    def center(self) -> float:
        """Return the middle of the vertical axis."""
        return (self.top + self.bottom) / 2


def plot_lines(
    lines: Sequence[Points], x_label: str, y_label: str, mean: Points = (), log_x: bool = False
) -> LineChart | None:
    """Return a chart of thin lines, and a thick one for their mean; None without a finite point.

    The vertical scale is logarithmic if values span decades.
    """
    lines, mean = [_finite(line) for line in lines], _finite(mean)
    points = [point for line in (*lines, mean) for point in line]
    if not points:
        return None
    xs, ys = zip(*points, strict=True)
    log_y = min(ys) > 0 and math.log10(max(ys) / min(ys)) > MANY_DECADES
    across = Axis(min(xs), max(xs), LineChart.left, LineChart.right, log_x and min(xs) > 0)
    up = Axis(min(ys), max(ys), LineChart.bottom, LineChart.top, log_y)
    kinds = ["line" if mean else "line main"] * len(lines) + ["line main"]
    drawn = [
        (kind, "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in line))
        for kind, line in zip(kinds, [*lines, mean], strict=True)
        if line
    ]
    y_label += " (log scale)" if log_y else ""
    return LineChart(x_label, y_label, _ticks(across), _ticks(up), drawn)


def short(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.3g}"


def _ticks(axis: Axis) -> Ticks:
    return [(round(axis(tick), 1), short(tick)) for tick in axis.ticks()]


def _finite(line: Points) -> Points:
    return [point for point in line if all(map(math.isfinite, point))]

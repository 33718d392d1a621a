"""Charts of an evaluation's report, as inline SVG that takes its colors from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 10, 10, 40
SMALL_WIDTH, SMALL_HEIGHT = 180, 70
MANY_DECADES = 1.5

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value, in pixels."""
        return self.start + self._share(value) * (self.end - self.start)

    def _share(self, value: float) -> float:
        low, high, found = (
            math.log(number) if self.log else number for number in (self.low, self.high, value)
        )
        return (found - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values inside: powers of ten on a logarithmic scale that holds two of them, else
        about four steps of 1, 2 or 5.
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


def draw_lines(
    lines: Sequence[Points], x_label: str, y_label: str, mean: Points = (), log_x: bool = False
) -> str:
    """An SVG of thin lines, and a thick one for their mean; the vertical scale is logarithmic where
    values span decades.
    """
    points = [point for line in (*lines, mean) for point in line if all(map(math.isfinite, point))]
    if not points:
        return "<p>nothing to show</p>"
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    log_y = min(ys) > 0 and math.log10(max(ys) / min(ys)) > MANY_DECADES
    across = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log_x and min(xs) > 0)
    up = Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP, log_y)
    parts = [*_grid(across, up), *_labels(x_label, y_label + (" (log scale)" if log_y else ""))]
    parts += [_path(line, across, up, "line" if mean else "line main") for line in lines]
    parts += [_path(mean, across, up, "line main")] if mean else []
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{html.escape(y_label)}">{"".join(parts)}</svg>'
    )


def draw_histogram(low: float, width: float, counts: Sequence[int]) -> str:
    """A small SVG of counts in bins of equal width, with the first and last edge named."""
    tallest, bar = max(counts) or 1, SMALL_WIDTH / len(counts)
    base = SMALL_HEIGHT - 14
    bars = "".join(
        f'<rect x="{number * bar:.1f}" y="{base - base * count / tallest:.1f}" width="{bar:.1f}"'
        f' height="{base * count / tallest:.1f}"/>'
        for number, count in enumerate(counts)
        if count
    )
    edges = f'<text x="0" y="{SMALL_HEIGHT - 2}">{_short(low)}</text>'
    edges += (
        f'<text x="{SMALL_WIDTH}" y="{SMALL_HEIGHT - 2}"'
        f' text-anchor="end">{_short(low + width * len(counts))}</text>'
    )
    return (
        f'<svg class="small" viewBox="0 0 {SMALL_WIDTH} {SMALL_HEIGHT}"'
        f' role="img">{bars}{edges}</svg>'
    )


def _grid(across: Axis, up: Axis) -> list[str]:
    parts = []
    for tick in up.ticks():
        y = up(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>'
        )
    for tick in across.ticks():
        parts.append(
            f'<text x="{across(tick):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            f' text-anchor="middle">{_short(tick)}</text>'
        )
    return parts


def _labels(x_label: str, y_label: str) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>',
        (
            f'<text transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)"'
            f' text-anchor="middle">{html.escape(y_label)}</text>'
        ),
    ]


def _path(
    points: Points, across: Callable[[float], float], up: Callable[[float], float], kind: str
) -> str:
    places = [
        f"{across(x):.1f} {up(y):.1f}" for x, y in points if math.isfinite(x) and math.isfinite(y)
    ]
    return f'<path class="{kind}" d="M{"L".join(places)}"/>' if places else ""


def _short(value: float) -> str:
    return f"{value:.3g}"

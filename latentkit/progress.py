"""The live line: samples per second, how long the encoder waited, the time left.

A bar on a terminal, else a plain line every few seconds.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

LINE_SECONDS = 5.0


class Progress:
    """Counts towards `total` and says so on stderr.

    Args:
        total: number of samples to do.
        unit: what is counted, such as "samples".
        shown: whether anything is printed.
    """

    def __init__(self, total: int, unit: str, shown: bool) -> None:
        self.total, self.unit, self.shown = total, unit, shown
        self.done = 0
        self.others = 0
        """Done by other processes since the start, as far as is known; set from any thread."""
        self.waited_seconds = 0.0
        self._started = self._last_line = time.monotonic()
        live = shown and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=f" {unit}", dynamic_ncols=True, leave=False, file=sys.stderr) if live else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def update(self, count: int, waited_seconds: float) -> None:
        """`count` more are done, and the encoder waited so many seconds more."""
        self.done += count
        self.waited_seconds += waited_seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"encoder waited {self._waited_share():.0%}", refresh=False)
            self._bar.update(self.done + self.others - self._bar.n)
        elif self.shown and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        done, seconds = self.done + self.others, max(self.seconds, 1e-9)
        rate = f"{done / seconds:.1f}/s" + (f" ({self.done / seconds:.1f}/s here)" if self.others else "")
        left = (self.total - done) * seconds / done if done else 0.0
        return f"{done}/{self.total} {self.unit}, {rate}, encoder waited {self._waited_share():.0%}, {format_seconds(left)} left"

    def _waited_share(self) -> float:
        return self.waited_seconds / max(self.seconds, 1e-9)


def format_seconds(seconds: float) -> str:
    """Such as "42 s", "3 min 20 s" or "5 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

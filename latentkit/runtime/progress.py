"""The progress line: how much is done, how fast, and the time left.

On a terminal it is one line that changes, otherwise a plain line every few seconds.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from latentkit.runtime.workers import is_worker

LINE_SECONDS = 5.0


class Progress:
    """Counts towards `total` and prints the progress on stderr.

    Args:
        total: number of samples (or other things) to do.
        unit: what is counted, such as "samples".
        shown: whether anything is printed.
        before: how many were done before the start; they don't count for the rate.
    """

    def __init__(self, total: int, unit: str, shown: bool, before: int = 0) -> None:
        self.total, self.unit, self.shown, self.before = (
            total,
            unit,
            shown and not is_worker(),
            before,
        )
        self.done = 0
        self.others = 0
        """Known number done by other processes since the start; set from any thread."""
        self.waited_seconds = 0.0
        self._started = self._last_line = time.monotonic()
        live = self.shown and sys.stderr.isatty()
        form = "{percentage:3.0f}% {bar:12} {desc}"
        self._bar = (
            tqdm(
                total=total,
                initial=before,
                bar_format=form,
                dynamic_ncols=True,
                leave=False,
                file=sys.stderr,
            )
            if live
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the line from the terminal."""
        if self._bar is not None:
            self._bar.close()

    @property
    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def update(self, count: int, waited_seconds: float | None = None, remark: str = "") -> None:
        """Count more as done.

        Args:
            waited_seconds: how long an encoder waited for them; the line then shows the share of
                time it has waited in total.
            remark: text to add to the line.
        """
        self.done += count
        if waited_seconds is not None:
            self.waited_seconds += waited_seconds
            remark = f"encoder waited {self.waited_seconds / max(self.seconds, 1e-9):.0%}"
        if self._bar is not None:
            self._bar.set_description_str(self._line(remark), refresh=False)
            self._bar.update(self.before + self.done + self.others - self._bar.n)
        elif self.shown and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self._line(remark), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Print a separate line above the progress line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)

    def _line(self, remark: str) -> str:
        """Return the text of the progress line."""
        done, seconds = self.done + self.others, max(self.seconds, 1e-9)
        rate = f"{done / seconds:.1f}/s" + (
            f" ({self.done / seconds:.1f}/s here)" if self.others else ""
        )
        left = (self.total - self.before - done) * seconds / done if done else 0.0
        parts = [
            f"{self.before + done}/{self.total} {self.unit}",
            rate,
            *([remark] if remark else []),
            f"{format_seconds(left)} left",
        ]
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return a duration such as "42 s", "3 min 20 s" or "5 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"

"""Long videos and sounds as many samples: the files of another source, each cut into spans of time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

from latentkit.contracts import Entry, Sample, Source
from latentkit.contracts.samples import Remark
from latentkit.errors import SampleError

Span = tuple[float, float]
"""Start and end in seconds."""

TOLERANCE = 1e-6
"""Seconds by which a video may end before a span does."""


SHORTENED = "what lies behind the last span is left out (tail: drop)"


class SpanSource:
    """Spans of another source's samples, keyed as in "talks/a.mp4#t=4,6.5".

    The names are those of W3C's Media Fragments, https://www.w3.org/TR/media-frags/#naming-time. A
    file that can't be cut, because it is damaged or shorter than a span, is one sample under its
    own name, so that it is not lost: preparing it says what is wrong.

    Args:
        files: whose samples are cut; its media is not held.
        find_spans: the spans of one sample, none where it can't be cut; opens its header. Called
            from several threads.
        shortened: keys of samples whose end is in no span, to be said; `find_spans` may append to
            it.

    Raises:
        OSError: a file can't be reached.
    """

    def __init__(
        self,
        files: Source,
        find_spans: Callable[[Sample], Sequence[Span]],
        shortened: Sequence[str] = (),
    ) -> None:
        def spans_of(index: int) -> Sequence[Span | None]:
            try:
                return list(find_spans(files[index])) or [None]
            except SampleError:
                return [None]

        self._files, self._shortened = files, shortened
        with ThreadPoolExecutor() as threads:
            found = threads.map(spans_of, range(len(files)))
            self._rows = [(index, span) for index, spans in enumerate(found) for span in spans]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position, with its span."""
        number, span = self._rows[index]
        sample = self._files[number]
        return replace(sample, key=_key(sample.key, span), span=span)

    def entries(self) -> Iterator[Entry]:
        """One entry per span, in order of file and time."""
        files = list(self._files.entries())
        for number, span in self._rows:
            yield replace(files[number], key=_key(files[number].key, span))

    def remarks(self) -> Iterator[Remark]:
        """Those of the other source, and the files that are not cut, or not up to their end."""
        yield from getattr(self._files, "remarks", lambda: ())()
        uncut = [number for number, span in self._rows if span is None]
        if uncut:
            example = self._files[uncut[0]].key
            yield Remark(
                "not cut into spans, being damaged or shorter than one", len(uncut), example
            )
        if self._shortened:
            yield Remark(SHORTENED, len(self._shortened), min(self._shortened))


def equal_spans(
    duration: float,
    length: float,
    stride: float | None = None,
    tail: Literal["drop", "keep"] = "drop",
) -> list[Span]:
    """Return spans of `length` seconds every `stride` (None: `length`) of `duration` seconds.

    Args:
        tail: whether what is left at the end, shorter than `length`, becomes a span too.
    """
    spans, step = [], stride or length
    number = 0
    while (start := number * step) + length <= duration + TOLERANCE:
        spans.append((round(start, 6), round(min(start + length, duration), 6)))
        number += 1
    if (
        tail == "keep"
        and start < duration - TOLERANCE
        and (not spans or spans[-1][1] < duration - TOLERANCE)
    ):
        spans.append((round(start, 6), round(duration, 6)))
    return spans


def _key(key: str, span: Span | None) -> str:
    return key if span is None else f"{key}#t={_seconds(span[0])},{_seconds(span[1])}"


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")

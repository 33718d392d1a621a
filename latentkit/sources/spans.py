"""Cuts long videos and audio files into many samples: spans of time of another source's files."""

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


SHORTENED = "the end after the last span is left out (tail: drop)"


class SpanSource:
    """Samples that are spans of another source's samples. Their keys contain the span, as in
    "talks/a.mp4#t=4,6.5".

    The notation is W3C's Media Fragments, https://www.w3.org/TR/media-frags/#naming-time. A file
    that can't be cut, because it is damaged or shorter than a span, stays one sample under its own
    key. Preparing that sample then reports the problem.

    Args:
        files: the source whose samples are cut; its media isn't kept in memory.
        find_spans: returns the spans of one sample, or none if it can't be cut; opens the file's
            header. Called from several threads.
        shortened: keys of samples whose end is in no span, for a remark; `find_spans` may append to
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
        """Return the sample at a position, with its span."""
        number, span = self._rows[index]
        sample = self._files[number]
        return replace(sample, key=_key(sample.key, span), span=span)

    def entries(self) -> Iterator[Entry]:
        """Yield one entry per span, in order of file and time."""
        files = list(self._files.entries())
        for number, span in self._rows:
            yield replace(files[number], key=_key(files[number].key, span))

    def remarks(self) -> Iterator[Remark]:
        """Yield the other source's remarks, and which files are not cut or not up to their end."""
        yield from getattr(self._files, "remarks", lambda: ())()
        uncut = [number for number, span in self._rows if span is None]
        if uncut:
            example = self._files[uncut[0]].key
            yield Remark(
                "not cut into spans, because they are damaged or shorter than one",
                len(uncut),
                example,
            )
        if self._shortened:
            yield Remark(SHORTENED, len(self._shortened), min(self._shortened))


def equal_spans(
    duration: float,
    length: float,
    stride: float | None = None,
    tail: Literal["drop", "keep"] = "drop",
) -> list[Span]:
    """Return spans of `length` seconds every `stride` seconds (None: no gap and no overlap) of
    media that lasts `duration` seconds.

    Args:
        tail: whether a rest shorter than `length` at the end becomes a span too.
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
    """Return the key of a span; without a span the key itself."""
    return key if span is None else f"{key}#t={_seconds(span[0])},{_seconds(span[1])}"


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")

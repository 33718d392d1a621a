"""Fetches and prepares single samples of a source; a bad sample doesn't affect the others."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from latentkit.contracts import Modality, Prepared, Sample, Source, StreamSource
from latentkit.errors import SampleError
from latentkit.preparing.media_retry import with_retries
from latentkit.runtime.sample_faults import faults_skip_sample

View = TypeVar("View")


@dataclass(frozen=True)
class TriedSample(Generic[View]):
    """Result of preparing a sample: its views, at least one, or the reason why there are none."""

    key: str
    views: Sequence[View] = ()
    reason: str = ""


class SampleTrier:
    """Fetches samples of a source and has them prepared, in any thread.

    Args:
        source: source of the samples. They are given by position, or for a stream as samples.
    """

    def __init__(self, source: Source | StreamSource) -> None:
        self._source = source

    def try_sample(
        self, sample: int | Sample, prepare: Callable[[Sample], Iterable[View]]
    ) -> TriedSample[View]:
        """Prepare a sample. Media that can't be reached is tried again.

        Raises:
            SourceError: the media still can't be reached.
        """
        key, what = None, f"sample {sample.key if isinstance(sample, Sample) else sample}"

        def views() -> list[View]:
            nonlocal key
            found = sample if isinstance(sample, Sample) else self._fetch(sample)
            key = found.key
            return list(prepare(found))

        try:
            given = with_retries(views, what)
        except SampleError as error:
            if key is None:
                assert isinstance(sample, int)
                key = self._keys[sample]
            return TriedSample(key, reason=str(error))
        assert key is not None
        return TriedSample(key, given, "" if given else "the modality returned no view of it")

    def _fetch(self, place: int) -> Sample:
        assert isinstance(self._source, Source)
        with faults_skip_sample(self._source):
            return self._source[place]

    @functools.cached_property
    def _keys(self) -> list[str]:
        """Keys of all samples, for messages about a sample that can't be fetched."""
        assert isinstance(self._source, Source)
        return [entry.key for entry in self._source.entries()]


def prepared_by(
    modality: Modality, most: int | None = None
) -> Callable[[Sample], list[Prepared]]:
    """Return a function that prepares the views of a sample, at most `most` of them. An unexpected
    exception of the modality becomes a `SampleError`.
    """

    def prepare(sample: Sample) -> list[Prepared]:
        with faults_skip_sample(modality, sample.key):
            return list(itertools.islice(modality.prepare(sample), most))

    return prepare

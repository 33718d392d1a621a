"""One sample of a source fetched and prepared, where a bad one costs itself alone."""

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
    """What became of a sample: its views, at least one, or the reason why there are none."""

    key: str
    views: Sequence[View] = ()
    reason: str = ""


class SampleTrier:
    """Fetches samples of a source and has them prepared, in any thread.

    Args:
        source: whose samples are asked for by their place, or of a stream given.
    """

    def __init__(self, source: Source | StreamSource) -> None:
        self._source = source

    def try_sample(
        self, sample: int | Sample, prepare: Callable[[Sample], Iterable[View]]
    ) -> TriedSample[View]:
        """Prepare a sample; media out of reach is tried again.

        Raises:
            SourceError: it can't be reached.
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
        return TriedSample(key, given, "" if given else "the modality gave no view of it")

    def _fetch(self, place: int) -> Sample:
        assert isinstance(self._source, Source)
        with faults_skip_sample(self._source):
            return self._source[place]

    @functools.cached_property
    def _keys(self) -> list[str]:
        """Of all samples, for those that can't be fetched."""
        assert isinstance(self._source, Source)
        return [entry.key for entry in self._source.entries()]


def prepared_by(
    modality: Modality, most: int | None = None
) -> Callable[[Sample], list[Prepared]]:
    """Return what prepares every view of a sample, or the first few; an exception that the contract
    doesn't know costs the sample.
    """

    def prepare(sample: Sample) -> list[Prepared]:
        with faults_skip_sample(modality, sample.key):
            return list(itertools.islice(modality.prepare(sample), most))

    return prepare

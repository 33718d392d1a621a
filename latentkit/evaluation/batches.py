"""Samples of an evaluation: in the source's order, prepared ahead in threads, batched by bucket."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentkit.contracts import Modality, Sample, Source, StreamSource
from latentkit.errors import RecipeError, SampleError, SourceError
from latentkit.preparing.media_retry import with_retries
from latentkit.preparing.threads_ahead import prepare_in_order
from latentkit.preparing.unit_samples import read_shard
from latentkit.runtime.bad_samples import exceeds_max_bad
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.sample_faults import faults_skip_sample

AHEAD_PER_CORE = 4


@dataclass(frozen=True)
class Row:
    """One view of one sample. For a bad sample `tensor`, (C, ...), is None and `reason` says why.

    Args:
        position: number of the row, from 0, counting good and bad ones.
    """

    position: int
    key: str
    view: str = ""
    bucket: str = ""
    tensor: Tensor | None = None
    reason: str = ""


@dataclass(frozen=True)
class BadSamples:
    """What is done with bad samples: the recipe's keys."""

    on_bad_sample: str = "skip"
    max_bad: float = 0.05


def count_samples(source: Source | StreamSource) -> int | None:
    """Return the number of samples in the source; None for a stream, which would have to be
    read.
    """
    return None if isinstance(source, StreamSource) else len(source)


def read_rows(source: Source | StreamSource, modality: Modality, bad: BadSamples) -> Generator[Row]:
    """Yield every view of every sample, in the source's order.

    Raises:
        SourceError: media can't be reached, no sample is usable, or more are bad than allowed.
        RecipeError: the modality returns several tensors per sample.
    """
    num_threads = share_of_cores()
    prepare = functools.partial(_prepare, source, modality)
    num_ahead = AHEAD_PER_CORE * num_threads - 1
    num_good, num_bad, position = 0, 0, itertools.count()
    with contextlib.closing(
        prepare_in_order(_positions(source), prepare, num_ahead, num_threads)
    ) as ahead:
        for rows in ahead:
            num_good += not rows[0].reason
            num_bad += bool(rows[0].reason)
            _check_bad(rows[0], num_bad, bad, count_samples(source))
            for row in rows:
                yield Row(next(position), row.key, row.view, row.bucket, row.tensor, row.reason)
    if not num_good:
        raise SourceError(
            "no sample of the source can be used"
            + (f", such as {rows[0].key!r}: {rows[0].reason}" if num_bad else "")
        )
    if exceeds_max_bad(num_bad, num_good + num_bad, bad.max_bad):
        raise SourceError(
            f"{num_bad} of {num_good + num_bad} samples can't be used, more than max_bad:"
            f" {bad.max_bad:g} allows"
        )


def batch_rows(rows: Iterable[Row], batch_size: int) -> Iterator[list[Row]]:
    """Yield good rows in batches of one bucket: each batch when it is full, and the rest at the
    end.
    """
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        group = waiting.setdefault(row.bucket, [])
        group.append(row)
        if len(group) == batch_size:
            yield waiting.pop(row.bucket)
    yield from waiting.values()


def _positions(source: Source | StreamSource) -> Iterator[int | Sample]:
    if isinstance(source, StreamSource):
        for shard in source.shards():
            yield from read_shard(source, shard)
    else:
        yield from range(len(source))


def _prepare(source: Source | StreamSource, modality: Modality, place: int | Sample) -> list[Row]:
    """Return the rows of one sample, at least one."""

    def prepare() -> list[Row]:
        sample = place if isinstance(place, Sample) else _fetch(source, place)
        if isinstance(sample, Row):
            return [sample]
        try:
            with faults_skip_sample(modality, sample.key):
                prepared = list(modality.prepare(sample))
            views = [_row(sample.key, view.view, view.bucket, view.tensor) for view in prepared]
        except SampleError as error:
            return [Row(0, sample.key, reason=str(error))]
        return views or [Row(0, sample.key, reason="the modality returned no view of it")]

    return with_retries(prepare, f"sample {place.key if isinstance(place, Sample) else place}")


def _fetch(source: Source | StreamSource, index: int) -> Sample | Row:
    assert isinstance(source, Source)
    try:
        with faults_skip_sample(source):
            return source[index]
    except SampleError as error:
        key = next(itertools.islice(source.entries(), index, None)).key
        return Row(0, key, reason=str(error))


def _row(key: str, view: str, bucket: str, tensor: object) -> Row:
    if not isinstance(tensor, Tensor):
        raise RecipeError(
            f"sample {key!r}: evaluation needs modalities that return one tensor per sample; this"
            " one"
            " returns several"
        )
    return Row(0, key, view, bucket, tensor)


def _check_bad(row: Row, num_bad: int, bad: BadSamples, num_samples: int | None) -> None:
    """Refuse to continue if too many samples are bad."""
    if not row.reason:
        return
    if bad.on_bad_sample == "fail":
        raise SourceError(
            f"sample {row.key!r} can't be used: {row.reason}; remove it, or set on_bad_sample: skip"
        )
    if num_samples is not None and exceeds_max_bad(num_bad, num_samples, bad.max_bad):
        allowed = f"more than max_bad: {bad.max_bad:g} allows"
        raise SourceError(
            f"{num_bad} of {num_samples} samples can't be used so far, {allowed}, such as"
            f" {row.key!r}: {row.reason}"
        )


def tensors_of(rows: Sequence[Row]) -> list[Tensor]:
    """Return the tensors of good rows."""
    return [row.tensor for row in rows if row.tensor is not None]

"""Samples of an evaluation: in the source's order, prepared ahead in threads, batched by bucket."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from latentkit.contracts import Modality, Prepared, Sample, Source, StreamSource
from latentkit.errors import RecipeError
from latentkit.preparing.look_ahead import prepare_in_order
from latentkit.preparing.sample_trier import SampleTrier, prepared_by
from latentkit.preparing.unit_samples import read_shard
from latentkit.runtime.bad_samples import BadSamplePolicy, refuse_all
from latentkit.runtime.cores import share_of_cores

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


def count_samples(source: Source | StreamSource) -> int | None:
    """Return the number of samples in the source; None for a stream, which would have to be
    read.
    """
    return None if isinstance(source, StreamSource) else len(source)


def read_rows(
    source: Source | StreamSource, modality: Modality, policy: BadSamplePolicy
) -> Generator[Row]:
    """Yield every view of every sample, in the source's order.

    Raises:
        SourceError: media can't be reached, no sample is usable, or more are bad than allowed.
        RecipeError: the modality returns several tensors per sample.
    """
    num_threads, num_samples = share_of_cores(), count_samples(source)
    trier, prepare = SampleTrier(source), prepared_by(modality)
    num_read, position, reasons = 0, itertools.count(), dict[str, str]()
    with contextlib.closing(
        prepare_in_order(
            _samples(source),
            lambda sample: trier.try_sample(sample, prepare),
            AHEAD_PER_CORE * num_threads - 1,
            num_threads,
        )
    ) as ahead:
        for tried in ahead:
            num_read += 1
            if tried.reason:
                reasons[tried.key] = tried.reason
                policy.check_one(tried.key, tried.reason)
                if num_samples is not None:
                    policy.check_all(reasons, num_samples, when=" so far")
                yield Row(next(position), tried.key, reason=tried.reason)
            for view in tried.views:
                yield _row(next(position), tried.key, view)
    if not num_read:
        refuse_all(reasons)
    policy.check_all(reasons, num_read)


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


def _samples(source: Source | StreamSource) -> Iterator[int | Sample]:
    if isinstance(source, StreamSource):
        for shard in source.shards():
            yield from read_shard(source, shard)
    else:
        yield from range(len(source))


def _row(position: int, key: str, view: Prepared) -> Row:
    """Return a prepared view as a row."""
    if not isinstance(view.tensor, Tensor):
        raise RecipeError(
            f"sample {key!r}: evaluation needs modalities that return one tensor per sample; this"
            " one returns several"
        )
    return Row(position, key, view.view, view.bucket, view.tensor)


def tensors_of(rows: Sequence[Row]) -> list[Tensor]:
    """Return the tensors of good rows."""
    return [row.tensor for row in rows if row.tensor is not None]

"""The samples of a unit or of a stream's shard, in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from latentkit.contracts import Sample, Shard, Source, StreamSource, Unit
from latentkit.errors import SourceError
from latentkit.preparing.media_retry import with_retries
from latentkit.preparing.sample_preparer import Task
from latentkit.store.columns import escape
from latentkit.store.plan import Plan

# ---------------------------------------------------------------- units to tasks


def list_tasks(
    source: Source | StreamSource, plan: Plan, places: npt.NDArray[np.int64] | None, unit: Unit
) -> Iterator[Task]:
    """Yield the samples of a unit, in order. Those of a stream are read here.

    Raises:
        SourceError: a shard is missing or can't be reached.
    """
    keys = plan.keys(unit.start, unit.stop)
    if isinstance(source, StreamSource):
        shards = {escape(shard.name): shard for shard in source.shards()}
        gone = [name for name in keys if name not in shards]
        if gone:
            advice = "put it back, or choose another output.path"
            raise SourceError(
                f"shard {gone[0]!r}, which is not encoded yet, is missing from the source; {advice}"
            )
        samples = itertools.chain.from_iterable(read_shard(source, shards[name]) for name in keys)
        yield from (Task(position, sample=sample) for position, sample in enumerate(samples))
        return
    assert places is not None
    for position, key in zip(range(unit.start, unit.stop), keys, strict=True):
        yield Task(position, key, int(places[position]))


def read_shard(source: StreamSource, shard: Shard) -> Iterator[Sample]:
    """Yield the samples of a shard. If reading fails in the middle, the shard is read again up to
    that point.

    Raises:
        SourceError: the shard can't be reached.
    """
    samples, num_read = source.read(shard), 0

    def advance() -> Sample | None:
        nonlocal samples
        try:
            return next(samples, None)
        except OSError:
            samples = itertools.islice(source.read(shard), num_read, None)
            raise

    while (sample := with_retries(advance, f"shard {shard.name}")) is not None:
        yield sample
        num_read += 1

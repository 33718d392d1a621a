"""Batches of a training run: in an order that seed and epoch decide alone, prepared ahead in threads, from any position on."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import Modality, Prepared, Sample, Source
from latentkit.errors import SampleError, SourceError, TrainingError
from latentkit.store.order import epoch_batches

AHEAD = 3
"""Batches in preparation while one is trained on."""
READ_ATTEMPTS = 3
RETRY_SECONDS = 0.5


@dataclass(frozen=True)
class Position:
    """Where a process stands in the data: the epoch, and how many of its own batches of that epoch were handed out."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Example:
    """One view of a sample, (C, ...) float32 in the encoder's range; stored `moments`, (2 C, h, w), are used instead of the encoder."""

    inputs: Tensor
    moments: Tensor | None = None


Prepare = Callable[[Sample, Position], Sequence[Example]]
"""Every view of a sample for the batch before which a process stands at a position. Called from several threads at once; raises
`SampleError` and `OSError` as a `Modality` does."""


@dataclass(frozen=True)
class Batch:
    """Prepared samples, (N, C, ...) float32 in the encoder's range, their stored moments (N, 2 C, h, w), and the position behind them."""

    inputs: Tensor
    after: Position
    moments: Tensor | None = None


@dataclass(frozen=True)
class BatchSettings:
    """What decides the batches of one process. `on_bad_sample` and `max_bad` are the recipe's."""

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    on_bad_sample: str = "skip"
    max_bad: float = 0.05


@dataclass
class BadSamples:
    """Places in the source of samples that could not be used, with the reason; grows while batches are read."""

    reasons: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FreshViews:
    """A `Prepare` that draws anew each epoch: the modality is told the epoch in the sample's key, behind a "#".

    Args:
        modalities: alike but for the size that they prepare to; seed, epoch and number of the batch decide which of them prepares a
            batch, so that all processes have one size at a time.
        seed: of that draw.
    """

    modalities: Sequence[Modality]
    seed: int

    def __call__(self, sample: Sample, place: Position) -> list[Example]:
        number = int(np.random.default_rng([self.seed, place.epoch, place.batch]).integers(len(self.modalities)))
        return [
            Example(_one_tensor(view, sample.key))
            for view in self.modalities[number].prepare(replace(sample, key=f"{sample.key}#{place.epoch}"))
        ]


def epoch_indices(num_samples: int, settings: BatchSettings, epoch: int) -> list[list[int]]:
    """The batches of one epoch for one process, as positions in the source.

    Every process has equally many full batches, and none has a sample of another; what doesn't fill them waits for another epoch.

    Raises:
        TrainingError: fewer samples than one batch for each process.
    """
    needed = settings.batch_size * settings.world_size
    if num_samples < needed:
        shares = f"batch_size {settings.batch_size}" + (f" on {settings.world_size} processes" if settings.world_size > 1 else "")
        raise TrainingError(f"the source has {num_samples} samples, fewer than one batch ({shares}); lower batch_size, or add samples")
    alike = np.zeros(num_samples, np.int64)
    batches = epoch_batches(
        alike, alike, settings.batch_size, shuffle=True, seed=settings.seed, epoch=epoch, world_size=settings.world_size, tail="drop"
    )
    return [batch.tolist() for batch in batches[settings.rank :: settings.world_size]]


def read_batches(
    source: Source, prepare: Prepare, settings: BatchSettings, start: Position, bad: BadSamples | None = None
) -> Generator[Batch]:
    """Batches from a position on, without end; a bad sample is left out, and its batch is smaller.

    Which view of a sample is taken depends on seed, epoch and the sample's place in the source.

    Raises:
        TrainingError: too few samples for a batch, shapes that differ within one, or a modality that gives several tensors.
        SourceError: media out of reach, no usable sample in an epoch, or more bad ones than allowed.
    """
    bad = bad if bad is not None else BadSamples()
    pool = ThreadPoolExecutor(max(len(os.sched_getaffinity(0)), 2), thread_name_prefix="prepare")
    num_empty = 0
    ahead: deque[tuple[Position, list[Future[Example | None]]]] = deque()
    try:
        for place, indices in _walk(len(source), settings, start):
            ahead.append((place, [pool.submit(_prepare_one, source, prepare, settings.seed, place, index, bad) for index in indices]))
            if len(ahead) <= AHEAD:
                continue
            position, rows = ahead.popleft()
            good = [example for row in rows if (example := row.result()) is not None]
            _check_bad(source, bad, settings)
            num_empty = 0 if good else num_empty + 1
            if good:
                moments = [example.moments for example in good if example.moments is not None]
                after = Position(position.epoch, position.batch + 1)
                yield Batch(_stack([example.inputs for example in good]), after, _stack(moments) if moments else None)
            elif num_empty >= len(epoch_indices(len(source), settings, place.epoch)):
                raise SourceError(f"no sample of the source can be used, {_example(source, bad)}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _walk(num_samples: int, settings: BatchSettings, start: Position) -> Iterator[tuple[Position, list[int]]]:
    """Position before every batch from a position on, and its indices."""
    epoch, first = start.epoch, start.batch
    while True:
        batches = epoch_indices(num_samples, settings, epoch)
        for number in range(first, len(batches)):
            yield Position(epoch, number), batches[number]
        epoch, first = epoch + 1, 0


def _prepare_one(source: Source, prepare: Prepare, seed: int, place: Position, index: int, bad: BadSamples) -> Example | None:
    """One view of one sample; None for a bad one, whose reason is then in `bad`."""
    try:
        views = _views(source, prepare, place, index)
    except SampleError as error:
        bad.reasons[index] = str(error)
        return None
    return views[int(np.random.default_rng([seed, place.epoch, index]).integers(len(views)))]


def _views(source: Source, prepare: Prepare, place: Position, index: int) -> Sequence[Example]:
    """All views of a sample, at least one; media out of reach is tried for again."""
    for attempt in range(1, READ_ATTEMPTS + 1):
        try:
            views = prepare(source[index], place)
            if not views:
                raise SampleError("the modality gave no view of it")
            return views
        except OSError as error:
            if attempt == READ_ATTEMPTS:
                raise SourceError(f"sample {index} can't be reached: {error}; run again when it can") from error
            time.sleep(RETRY_SECONDS * attempt)
    raise AssertionError("not reached: the last attempt returns or raises")


def _one_tensor(view: Prepared, key: str) -> Tensor:
    if not isinstance(view.tensor, Tensor):
        names = ", ".join(view.tensor)
        raise TrainingError(f"training takes modalities that give one tensor a sample; for {key!r} this one gives {names}")
    return view.tensor


def _stack(tensors: list[Tensor]) -> Tensor:
    shapes = sorted({tuple(tensor.shape) for tensor in tensors})
    if len(shapes) > 1:
        texts = ", ".join("x".join(map(str, shape)) for shape in shapes)
        raise TrainingError(f"samples of one batch differ in shape ({texts}); prepare all of them to one size")
    return torch.stack(tensors)


def _check_bad(source: Source, bad: BadSamples, settings: BatchSettings) -> None:
    count = len(bad.reasons)
    if count and settings.on_bad_sample == "fail":
        raise SourceError(f"a sample can't be used, {_example(source, bad)}; remove it, or set on_bad_sample: skip")
    if count > 10 and count > settings.max_bad * len(source):
        allowed = f"more than max_bad: {settings.max_bad:g} allows"
        raise SourceError(f"{count} of {len(source)} samples can't be used, {allowed}, {_example(source, bad)}")


def _example(source: Source, bad: BadSamples) -> str:
    index, reason = min(bad.reasons.items())
    entry = next(itertools.islice(source.entries(), index, None))
    return f"such as {entry.key!r}: {reason}"

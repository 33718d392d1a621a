"""Batches of a training run: full ones of one shape, prepared ahead in threads, starting at any
position.

The samples of all epochs form one endless sequence. Each epoch's order depends on its number and
the seed. Of n processes, each takes every n-th sample. A process groups its samples by shape
(aspect-ratio buckets give several), and a full group is a batch. Samples that don't fill a batch
wait in memory for those of the next epoch. So every batch is full, no process runs out of batches,
and no sample is left out. A process's position is the number of its next sample and the numbers of
the few that wait.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import Modality, Prepared, Sample, Source
from latentkit.errors import TrainingError
from latentkit.preparing.look_ahead import prepare_in_order
from latentkit.preparing.sample_trier import SampleTrier, TriedSample, prepared_by
from latentkit.runtime.bad_samples import BadSamplePolicy, refuse_all
from latentkit.runtime.cores import share_of_cores

AHEAD = 3
"""Batches that are prepared while one is used for training."""
MAX_SHAPES = 256
"""Most groups that wait. With more, samples aren't bucketed but have arbitrary shapes."""
ORDER, VIEW, SIZE = 1, 2, 3
"""Names of separate streams of random numbers of one seed: for order, views and sizes."""


@dataclass(frozen=True)
class Position:
    """A process's position in its own sequence of samples.

    Args:
        number: number of its next sample, from 0.
        waiting: numbers of earlier samples, ascending, that aren't in a batch yet.
    """

    number: int = 0
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampleLocation:
    """A sample's location in a process's sequence.

    Args:
        block: number of the batch that it would be in if all samples had one shape; the same in all
            processes at a time.
    """

    epoch: int
    index: int
    block: int = 0


@dataclass(frozen=True)
class Example:
    """One view of a sample, (C, ...) float32 in the encoder's range. If `moments` are stored, (2 C,
    h, w), they replace the encoder.
    """

    inputs: Tensor
    moments: Tensor | None = None


Prepare = Callable[[Sample, SampleLocation], Sequence[Example]]
"""Returns every view of a sample. Called from several threads; raises `SampleError` and `OSError`
like a `Modality`.
"""


@dataclass(frozen=True)
class Batch:
    """Prepared samples, (N, C, ...) float32 in the encoder's range, their stored moments (N, 2 C,
    h, w), and the position after them.
    """

    inputs: Tensor
    after: Position
    moments: Tensor | None = None


@dataclass(frozen=True)
class BatchSettings:
    """Everything that decides the batches of one process. `on_bad_sample` and `max_bad` are the
    recipe's.
    """

    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    on_bad_sample: str = "skip"
    max_bad: float = 0.05

    @property
    def bad_samples(self) -> BadSamplePolicy:
        """The settings that decide when bad samples end the run."""
        return BadSamplePolicy(self.on_bad_sample, self.max_bad)


@dataclass(frozen=True)
class FreshViews:
    """A `Prepare` with new draws each epoch: the modality gets the epoch in the sample's key, after
    a "#".

    Args:
        modalities: modalities that only differ in the size they prepare to. Seed and block choose
            one, so that all processes have the same size at a time.
    """

    modalities: Sequence[Modality]
    seed: int

    def __call__(self, sample: Sample, place: SampleLocation) -> list[Example]:
        chosen = self.modalities[_draw(len(self.modalities), self.seed, SIZE, place.block)]
        views = prepared_by(chosen)(replace(sample, key=f"{sample.key}#{place.epoch}"))
        return [Example(_one_tensor(view, sample.key)) for view in views]


# ---------------------------------------------------------------- the order


@dataclass(frozen=True)
class Order:
    """The sequences of all processes.

    Args:
        settings: batch size, seed, and which process of how many this is.

    Raises:
        TrainingError: there are fewer samples than one batch for each process.
    """

    num_samples: int
    settings: BatchSettings

    def __post_init__(self) -> None:
        batch_size, world_size = self.settings.batch_size, self.settings.world_size
        if self.num_samples < batch_size * world_size:
            shares = f"batch_size {batch_size}" + (
                f" on {world_size} processes" if world_size > 1 else ""
            )
            few = f"the source has {self.num_samples} samples, fewer than one batch ({shares})"
            raise TrainingError(f"{few}; lower batch_size, or add samples")

    def place(self, number: int) -> SampleLocation:
        """Return the location of this process's sample with this number."""
        epoch, place = divmod(
            number * self.settings.world_size + self.settings.rank, self.num_samples
        )
        return SampleLocation(
            epoch,
            int(_permutation(self.num_samples, self.settings.seed, epoch)[place]),
            number // self.settings.batch_size,
        )

    def start_of(self, epoch: int) -> Position:
        """Return the position before this process's first sample of an epoch."""
        return Position(
            -(-(epoch * self.num_samples - self.settings.rank) // self.settings.world_size)
        )


@functools.lru_cache(maxsize=4)
def _permutation(num_samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, ORDER, epoch]).permutation(num_samples)


def _draw(count: int, *key: int) -> int:
    """Return a number below `count` that depends on seed and stream."""
    if count == 1:  # the usual case; a generator would take half as long as the preparation
        return 0
    return int(np.random.default_rng(key).integers(count))


# ---------------------------------------------------------------- reading


def read_batches(
    source: Source,
    prepare: Prepare,
    settings: BatchSettings,
    start: Position,
    reasons: dict[str, str] | None = None,
) -> Generator[Batch]:
    """Yield batches from a position on, without end. Bad samples are left out.

    Which view of a sample is used depends on seed, epoch and the sample's index in the source.

    Raises:
        TrainingError: there are too few samples for a batch, samples have too many shapes, or the
            modality returns several tensors.
        SourceError: media can't be reached, an epoch has no usable sample, or more samples are bad
            than allowed.
    """
    reasons = {} if reasons is None else reasons
    waiting: dict[tuple[int, ...], dict[int, Example]] = {}  # shape to number to example
    num_bad_in_row = 0
    with contextlib.closing(
        _prepare_ahead(source, prepare, Order(len(source), settings), start)
    ) as prepared:
        for number, tried in prepared:
            if tried.reason:
                reasons[tried.key] = tried.reason
                num_bad_in_row += 1
                settings.bad_samples.check_one(tried.key, tried.reason)
                settings.bad_samples.check_all(reasons, len(source))
                if num_bad_in_row * settings.world_size >= len(source):
                    refuse_all(reasons)
                continue
            num_bad_in_row, (example,) = 0, tried.views
            shape = tuple(example.inputs.shape)
            group = waiting.setdefault(shape, {})
            group[number] = example
            if len(group) == settings.batch_size:
                del waiting[shape]
                left = sorted(itertools.chain.from_iterable(waiting.values()))
                yield _stack(
                    list(group.values()), Position(max(number + 1, start.number), tuple(left))
                )
            elif len(waiting) > MAX_SHAPES:
                shapes = " and ".join("x".join(map(str, shape)) for shape in sorted(waiting)[:2])
                few = f"samples come in more than {MAX_SHAPES} shapes, such as {shapes}"
                raise TrainingError(
                    f"{few}; prepare them to one size or to a few buckets (modality.with)"
                )


def _prepare_ahead(
    source: Source, prepare: Prepare, order: Order, start: Position
) -> Generator[tuple[int, TriedSample[Example]]]:
    """Yield the number, index in the source, and example of one sample after the other, without
    end; for a bad sample the reason.
    """
    seed, trier = order.settings.seed, SampleTrier(source)

    def prepare_one(number: int) -> tuple[int, TriedSample[Example]]:
        place = order.place(number)
        tried = trier.try_sample(place.index, lambda sample: prepare(sample, place))
        if tried.reason:
            return number, tried
        chosen = _draw(len(tried.views), seed, VIEW, place.epoch, place.index)
        return number, replace(tried, views=[tried.views[chosen]])

    return prepare_in_order(
        itertools.chain(start.waiting, itertools.count(start.number)),
        prepare_one,
        AHEAD * order.settings.batch_size,
        max(share_of_cores(), 2),
    )


def _one_tensor(view: Prepared, key: str) -> Tensor:
    """Return a view's tensor, after checking that it has a single one."""
    if not isinstance(view.tensor, Tensor):
        names = ", ".join(view.tensor)
        raise TrainingError(
            f"training needs modalities that return one tensor per sample; for {key!r} this one"
            f" returns {names}"
        )
    return view.tensor


def _stack(examples: Sequence[Example], after: Position) -> Batch:
    """Return examples as one batch."""
    moments = [example.moments for example in examples if example.moments is not None]
    return Batch(
        torch.stack([example.inputs for example in examples]),
        after,
        torch.stack(moments) if moments else None,
    )

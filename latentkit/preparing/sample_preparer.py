"""One sample on its way to the encoder: fetched, hashed and turned into tensors."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from latentkit.contracts import Modality, Prepared, Sample, Source, StreamSource
from latentkit.contracts.samples import file_state, num_bytes
from latentkit.errors import PluginError, SampleError, SourceError
from latentkit.preparing.media_retry import retried
from latentkit.preparing.stack import num_bytes_of
from latentkit.runtime.buffers import BatchMemory, BatchRows, BufferPool, lending
from latentkit.runtime.masks import without_mask
from latentkit.runtime.sample_faults import faults_cost_the_sample
from latentkit.store.columns import escape
from latentkit.store.writer import RowLabel

GONE = "gone from the source"
"""Why a sample of an incremental plan can be missing without any fault; the next comparison drops
it.
"""

HELD_BYTES = 64 << 20
"""Media files up to this size are read whole; larger ones, and those that samples are spans of,
stay paths, for the modality to stream.
"""


# ---------------------------------------------------------------- one sample


@dataclass(frozen=True)
class Task:
    """A sample to prepare: its position in the plan (streams: in the unit), and itself, or its key
    and its place in the source.

    A place of -1 stands for a sample that is gone from there.
    """

    position: int
    key: str = ""
    place: int = -1
    sample: Sample | None = None


@dataclass(frozen=True)
class Row:
    """A view that is ready to be encoded; `place` is the row of `memory` that its one tensor
    besides a mask was prepared into.
    """

    label: RowLabel
    view: Prepared
    memory: BatchMemory | None = None
    place: int = 0

    @property
    def num_bytes(self) -> int:
        """Of its tensors."""
        return num_bytes_of(self.view.tensor)


@dataclass(frozen=True)
class PreparedSample:
    """What preparing a sample gave: a row per view, or missing views and the reason."""

    rows: Sequence[Row]
    skipped: Sequence[RowLabel] = ()
    reason: str = ""

    @property
    def num_bytes(self) -> int:
        """Of all its tensors."""
        return sum(row.num_bytes for row in self.rows)


@dataclass(frozen=True)
class Preparer:
    """Turns samples into outcomes, in any thread or process."""

    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    pool: BufferPool = field(default_factory=lambda: BufferPool(pinned=False))
    """Memory of rows that have no place in a batch."""

    def prepare(
        self, tasks: Sequence[Task], memory: BatchMemory | None = None, row: int = 0
    ) -> list[PreparedSample]:
        """Outcomes of samples that follow each other; the tensors go into `memory` from `row` on
        where the modality asks for it.

        Raises:
            SourceError: the source changed, or can't be reached.
            PluginError: the modality gave other views than it says.
        """
        outcomes = []
        for task in tasks:
            outcomes.append(
                retried(
                    functools.partial(self._prepare, task, memory, row), f"sample {task.position}"
                )
            )
            row += len(self.views)
        return outcomes

    def _prepare(self, task: Task, memory: BatchMemory | None, row: int) -> PreparedSample:
        sample, content = None, None
        try:
            with faults_cost_the_sample(self.source, task.key):
                sample = self._fetch(task) if task.sample is None else task.sample
            sample = self._held(sample)
            before = file_state(sample.media) if isinstance(sample.media, os.PathLike) else None
            content = sample.content()
            with faults_cost_the_sample(self.modality, sample.key):
                views = self._views(sample, memory, row)
            if isinstance(sample.media, os.PathLike) and file_state(sample.media) != before:
                raise OSError(f"{sample.media} changed while it was read")
        except SampleError as error:
            skipped = [
                self._label(task, sample, number, content) for number in range(len(self.views))
            ]
            return PreparedSample([], skipped, str(error))
        names = [view.view for view in views]
        if names != list(self.views):
            raise PluginError(f"the modality gave the views {names}, expected {list(self.views)}")
        return PreparedSample(
            [
                self._row(task, sample, number, content, view, memory, row + number)
                for number, view in enumerate(views)
            ]
        )

    def _views(self, sample: Sample, memory: BatchMemory | None, row: int) -> list[Prepared]:
        rows = None if memory is None else BatchRows(memory, row, len(self.views), self.pool)
        prepare: Callable[..., Iterator[Prepared]] = self.modality.prepare
        if self._hands_memory:
            return list(prepare(sample, memory=rows or self.pool))
        with lending(rows):
            return list(prepare(sample))

    @functools.cached_property
    def _hands_memory(self) -> bool:
        return "memory" in inspect.signature(self.modality.prepare).parameters

    def _held(self, sample: Sample) -> Sample:
        """Return the sample with its bytes, read once; or its path where that is wanted."""
        takes_path = getattr(self.modality, "takes_paths", False) or sample.span is not None
        if (
            takes_path
            or not isinstance(sample.media, os.PathLike)
            or num_bytes(sample.media) > HELD_BYTES
        ):
            return sample
        return replace(sample, media=sample.read())

    def _fetch(self, task: Task) -> Sample:
        if task.place < 0:
            raise SampleError(GONE)
        sample = cast(Source, self.source)[task.place]
        if escape(sample.key) != task.key:
            raise SourceError(
                f"the source changed while it was read: {sample.key!r} is where {task.key!r} was;"
                " run again"
            )
        return sample

    def _row(
        self,
        task: Task,
        sample: Sample,
        number: int,
        content: str,
        view: Prepared,
        memory: BatchMemory | None,
        place: int,
    ) -> Row:
        geometry = (
            {**view.geometry, "remarks": list(view.remarks)} if view.remarks else view.geometry
        )
        label = self._label(task, sample, number, content, geometry)
        values = without_mask(view.tensor)
        if memory is not None and values is not None and memory.holds(place, values):
            return Row(label, view, memory, place)
        return Row(label, view)

    def _label(
        self,
        task: Task,
        sample: Sample | None,
        number: int,
        content: str | None,
        geometry: Mapping[str, Any] | None = None,
    ) -> RowLabel:
        view = self.views[number]
        if sample is None:
            return RowLabel(task.position, view, number, content, geometry)
        if task.sample is None:
            return RowLabel(task.position, view, number, content, geometry, stamp=sample.stamp)
        return RowLabel(
            task.position,
            view,
            number,
            content,
            geometry,
            sample.key,
            sample.stamp,
            sample.attributes,
        )

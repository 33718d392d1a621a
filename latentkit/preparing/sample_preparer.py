"""Prepares one sample for the encoder: loads it, hashes it and turns it into tensors."""

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
from latentkit.preparing.media_retry import with_retries
from latentkit.preparing.stack import num_bytes_of
from latentkit.runtime.buffers import BatchMemory, BatchRows, BufferPool, lending
from latentkit.runtime.masks import without_mask
from latentkit.runtime.sample_faults import faults_skip_sample
from latentkit.store.columns import escape
from latentkit.store.writer import RowLabel

GONE = "gone from the source"
"""Reason for a sample of an incremental plan that is missing without a fault. The next comparison
with the source drops it.
"""

HELD_BYTES = 64 << 20
"""Media files up to this size are read as a whole. Larger files, and those whose samples are spans
of time, stay paths that the modality reads in parts.
"""


# ---------------------------------------------------------------- one sample


@dataclass(frozen=True)
class Task:
    """A sample to prepare: its position in the plan (for streams: in the unit), and either the
    sample itself or its key and its position in the source.

    `place` is -1 if the sample is no longer in the source.
    """

    position: int
    key: str = ""
    place: int = -1
    sample: Sample | None = None


@dataclass(frozen=True)
class Row:
    """A view that is ready to be encoded. If `memory` is set, its tensor (without a mask) already
    is row `place` of that batch, so that it isn't copied.
    """

    label: RowLabel
    view: Prepared
    memory: BatchMemory | None = None
    place: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the row's tensors."""
        return num_bytes_of(self.view.tensor)


@dataclass(frozen=True)
class PreparedSample:
    """Result of preparing a sample: one row per view, or the skipped views and the reason."""

    rows: Sequence[Row]
    skipped: Sequence[RowLabel] = ()
    reason: str = ""

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors of all rows."""
        return sum(row.num_bytes for row in self.rows)


@dataclass(frozen=True)
class Preparer:
    """Turns samples into tensors, in any thread or process."""

    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    pool: BufferPool = field(default_factory=lambda: BufferPool(pinned=False))
    """Memory of rows that have no place in a batch."""

    def prepare(
        self, tasks: Sequence[Task], memory: BatchMemory | None = None, row: int = 0
    ) -> list[PreparedSample]:
        """Prepare consecutive samples. If the modality supports it, tensors are written into
        `memory` from row `row` on.

        Raises:
            SourceError: the source changed, or can't be reached.
            PluginError: the modality returned other views than it declares.
        """
        outcomes = []
        for task in tasks:
            outcomes.append(
                with_retries(
                    functools.partial(self._prepare, task, memory, row), f"sample {task.position}"
                )
            )
            row += len(self.views)
        return outcomes

    def _prepare(self, task: Task, memory: BatchMemory | None, row: int) -> PreparedSample:
        """Prepare one sample; a bad one becomes a result with the reason."""
        sample, content = None, None
        try:
            with faults_skip_sample(self.source, task.key):
                sample = self._fetch(task) if task.sample is None else task.sample
            sample = self._load_small_file(sample)
            before = file_state(sample.media) if isinstance(sample.media, os.PathLike) else None
            content = sample.content()
            with faults_skip_sample(self.modality, sample.key):
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
            raise PluginError(
                f"the modality returned the views {names}, expected {list(self.views)}"
            )
        return PreparedSample(
            [
                self._row(task, sample, number, content, view, memory, row + number)
                for number, view in enumerate(views)
            ]
        )

    def _views(self, sample: Sample, memory: BatchMemory | None, row: int) -> list[Prepared]:
        """Return the views of a sample, in rows of a batch if possible."""
        rows = None if memory is None else BatchRows(memory, row, len(self.views), self.pool)
        prepare: Callable[..., Iterator[Prepared]] = self.modality.prepare
        if self._hands_memory:
            return list(prepare(sample, memory=rows or self.pool))
        with lending(rows):
            return list(prepare(sample))

    @functools.cached_property
    def _hands_memory(self) -> bool:
        """Return whether the modality's `prepare` takes memory as an argument."""
        return "memory" in inspect.signature(self.modality.prepare).parameters

    def _load_small_file(self, sample: Sample) -> Sample:
        """Return the sample with the bytes of its file, so the file is read once; or with its path,
        if the modality takes paths or the file is large.
        """
        takes_path = getattr(self.modality, "takes_paths", False) or sample.span is not None
        if (
            takes_path
            or not isinstance(sample.media, os.PathLike)
            or num_bytes(sample.media) > HELD_BYTES
        ):
            return sample
        return replace(sample, media=sample.read())

    def _fetch(self, task: Task) -> Sample:
        """Return the sample of a task, from the source if needed."""
        if task.place < 0:
            raise SampleError(GONE)
        sample = cast(Source, self.source)[task.place]
        if escape(sample.key) != task.key:
            raise SourceError(
                f"the source changed while it was read: {sample.key!r} is now at the position of"
                f" {task.key!r}. Run again"
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
        """Return one prepared view as a row. Its remarks are stored with the geometry, as a unit
        has no column of its own for them.
        """
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
        """Return what identifies a row: sample, view, attributes and geometry."""
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

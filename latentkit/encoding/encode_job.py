"""The input and the result of a worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from latentkit.contracts import Encoder, Modality, Source, StreamSource, Unit, UnitResult
from latentkit.store.folder import Folder
from latentkit.store.plan import Plan, PlanSettings
from latentkit.store.writer import RowLabel


@dataclass(frozen=True)
class EncodeJob:
    """Everything that a worker needs, in any process.

    Args:
        plan: what to encode.
        views: names of the views that the modality makes of each sample.
        open_encoder: takes a device and returns the encoder; called when there is work.
        store, dtype: as in the recipe's `output`.
        on_bad_sample: "skip" or "fail".
        settings: settings for the units left: the plan's, unless the recipe sets others.
        places: position in the source of each row of the plan; None for a stream.
        show_progress: whether this process prints the progress line.
        on_overflow: "skip", or "retry-fp32": rows that aren't finite are encoded again by
            `open_float32`.
        open_float32: takes a device and returns the same encoder, computing in float32.
    """

    folder: Folder
    plan: Plan
    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    open_encoder: Callable[[str], Encoder]
    store: str
    dtype: str
    on_bad_sample: str
    settings: PlanSettings
    places: npt.NDArray[np.int64] | None
    show_progress: bool = True
    on_overflow: str = "skip"
    open_float32: Callable[[str], Encoder] | None = None

    def own(self, unit: Unit) -> Unit:
        """Return the unit with the same samples in this job's plan."""
        return replace(unit, plan=self.plan.number)

    def key_of(self, label: RowLabel) -> str:
        """Return the key of a row's sample."""
        return label.key or self.plan.keys(label.position, label.position + 1)[0]


@dataclass(frozen=True)
class JobResult(UnitResult):
    """Result of one unit of the job with index `job` among a worker's jobs."""

    job: int = 0

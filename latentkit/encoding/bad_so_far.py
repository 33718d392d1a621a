"""Ends an encode run of which too many samples can't be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import StreamSource
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.make_plan import EncodeInputs
from latentkit.errors import SourceError
from latentkit.runtime.bad_samples import advise, are_too_many
from latentkit.store.contents import skipped_so_far
from latentkit.store.folder import Folder
from latentkit.store.index import first_rows, reason_by_key


def check_so_far(job: EncodeJob, num_skipped: int, max_bad: float) -> None:
    """Check the rows that this process has skipped by now; a stream is checked at its end.

    Raises:
        SourceError: they are more than `max_bad` allows.
    """
    num_gone = 0 if job.places is None else int((job.places < 0).sum())
    num_bad, num_samples = num_skipped // len(job.views) - num_gone, job.plan.table.num_rows
    if not job.plan.settings.stream and are_too_many(num_bad, num_samples, max_bad):
        bad = _bad_so_far(job)
        raise SourceError(
            f"{len(bad)} of {num_samples} samples could not be used so"
            f" far{_more_than(max_bad, job.folder, bad)}"
        )


def check_index(folder: Folder, inputs: EncodeInputs, max_bad: float, index: pa.Table) -> None:
    """Refuse to finish a dataset of mostly bad samples; those gone by now don't count."""
    if not isinstance(inputs.source, StreamSource):
        index = index.filter(
            pc.is_in(index["key"], value_set=inputs.entries["key"].combine_chunks())
        )
    num_samples, bad = first_rows(index).num_rows, reason_by_key(index)
    if num_samples and len(bad) == num_samples:
        raise SourceError(
            f"none of the {num_samples} samples could be used: {_most_common(bad)}, such as"
            f" {next(iter(bad))}"
        )
    if are_too_many(len(bad), num_samples, max_bad):
        raise SourceError(
            f"{len(bad)} of {num_samples} samples could not be"
            f" used{_more_than(max_bad, folder, bad)}"
        )


def _bad_so_far(job: EncodeJob) -> dict[str, str]:
    """Key to reason of each bad sample, of this run or an earlier one; of none that is gone."""
    found = skipped_so_far(job.folder, job.plan)
    if job.places is not None:
        gone = set(job.plan.work["key"].filter(pa.array(job.places < 0)).to_pylist())
        found = {key: reason for key, reason in found.items() if key not in gone}
    return found


def _most_common(bad: Mapping[str, str]) -> str:
    return "; ".join(
        f"{why} ({count} times)" for why, count in Counter(bad.values()).most_common(3)
    )


def _more_than(max_bad: float, folder: Folder, bad: Mapping[str, str]) -> str:
    allowed = f"more than max_bad ({max_bad:g}) allows, such as {', '.join(list(bad)[:3])}"
    return f": {_most_common(bad)}, {allowed}. {advise(set(bad.values()), str(folder))}"

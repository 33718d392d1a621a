"""Ends an encode run of which too many samples can't be used."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import StreamSource
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.make_plan import EncodeInputs
from latentkit.runtime.bad_samples import BadSamplePolicy, advise
from latentkit.store.contents import skipped_so_far
from latentkit.store.folder import Folder
from latentkit.store.index import first_rows, reason_by_key


def check_so_far(job: EncodeJob, num_skipped: int, max_bad: float) -> None:
    """Check the rows that this process has skipped by now; a stream is checked at its end.

    Raises:
        SourceError: they are more than `max_bad` allows.
    """
    policy = BadSamplePolicy(max_bad=max_bad)
    num_gone = 0 if job.places is None else int((job.places < 0).sum())
    num_bad, num_samples = num_skipped // len(job.views) - num_gone, job.plan.table.num_rows
    if not job.plan.settings.stream and policy.are_too_many(num_bad, num_samples):
        bad = _bad_so_far(job)
        policy.check_all(bad, num_samples, advise(bad, str(job.folder)), when=" so far")


def check_index(folder: Folder, inputs: EncodeInputs, max_bad: float, index: pa.Table) -> None:
    """Refuse to finish a dataset of mostly bad samples; those gone by now don't count."""
    if not isinstance(inputs.source, StreamSource):
        index = index.filter(
            pc.is_in(index["key"], value_set=inputs.entries["key"].combine_chunks())
        )
    bad, num_samples = reason_by_key(index), first_rows(index).num_rows
    BadSamplePolicy(max_bad=max_bad).check_all(bad, num_samples, advise(bad, str(folder)))


def _bad_so_far(job: EncodeJob) -> dict[str, str]:
    """Key to reason of each bad sample, of this run or an earlier one; of none that is gone."""
    found = skipped_so_far(job.folder, job.plan)
    if job.places is not None:
        gone = set(job.plan.work["key"].filter(pa.array(job.places < 0)).to_pylist())
        found = {key: reason for key, reason in found.items() if key not in gone}
    return found

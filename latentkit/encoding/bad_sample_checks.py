"""Ends an encode run if too many samples are bad."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import StreamSource
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.make_plan import EncodeInputs
from latentkit.runtime.bad_samples import BadSamplePolicy, advise_on_bad_samples
from latentkit.store.contents import skipped_so_far
from latentkit.store.folder import Folder
from latentkit.store.index import first_rows, reason_by_key


def check_bad_samples_so_far(job: EncodeJob, num_skipped: int, max_bad: float) -> None:
    """Check the samples that this process has skipped so far. A stream is checked at its end.

    Raises:
        SourceError: more samples are bad than `max_bad` allows.
    """
    policy = BadSamplePolicy(max_bad=max_bad)
    num_gone = 0 if job.places is None else int((job.places < 0).sum())
    num_bad, num_samples = num_skipped // len(job.views) - num_gone, job.plan.table.num_rows
    if not job.plan.settings.stream and policy.exceeds_max_bad(num_bad, num_samples):
        bad = _list_bad_samples(job)
        policy.check_all(
            bad, num_samples, advise_on_bad_samples(bad, str(job.folder)), when=" so far"
        )


def check_bad_samples_in_index(
    folder: Folder, inputs: EncodeInputs, max_bad: float, index: pa.Table
) -> None:
    """Refuse to finish a dataset of mostly bad samples. Samples that are no longer in the source
    don't count, because the next plan drops them.
    """
    if not isinstance(inputs.source, StreamSource):
        index = index.filter(
            pc.is_in(index["key"], value_set=inputs.entries["key"].combine_chunks())
        )
    bad, num_samples = reason_by_key(index), first_rows(index).num_rows
    BadSamplePolicy(max_bad=max_bad).check_all(
        bad, num_samples, advise_on_bad_samples(bad, str(folder))
    )


def _list_bad_samples(job: EncodeJob) -> dict[str, str]:
    """Return the reason for each bad sample of this or an earlier run, by key, without samples that
    were removed.
    """
    found = skipped_so_far(job.folder, job.plan)
    if job.places is not None:
        gone = set(job.plan.work["key"].filter(pa.array(job.places < 0)).to_pylist())
        found = {key: reason for key, reason in found.items() if key not in gone}
    return found

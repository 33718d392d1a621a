"""Ends an encode run if too many samples are bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import StreamSource
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.make_plan import EncodeInputs
from latentkit.errors import SourceError
from latentkit.runtime.bad_samples import advise_on_bad_samples, exceeds_max_bad
from latentkit.store.contents import skipped_so_far
from latentkit.store.folder import Folder
from latentkit.store.index import first_rows, reason_by_key


def check_bad_samples_so_far(job: EncodeJob, num_skipped: int, max_bad: float) -> None:
    """Check the samples that this process has skipped so far. A stream is checked at its end.

    Raises:
        SourceError: they are more than `max_bad` allows.
    """
    num_gone = 0 if job.places is None else int((job.places < 0).sum())
    num_bad, num_samples = num_skipped // len(job.views) - num_gone, job.plan.table.num_rows
    if not job.plan.settings.stream and exceeds_max_bad(num_bad, num_samples, max_bad):
        bad = _list_bad_samples(job)
        raise SourceError(
            f"{len(bad)} of {num_samples} samples could not be used so"
            f" far{_too_many_message(max_bad, job.folder, bad)}"
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
    num_samples, bad = first_rows(index).num_rows, reason_by_key(index)
    if num_samples and len(bad) == num_samples:
        raise SourceError(
            f"none of the {num_samples} samples could be used: {_most_common(bad)}, such as"
            f" {next(iter(bad))}"
        )
    if exceeds_max_bad(len(bad), num_samples, max_bad):
        raise SourceError(
            f"{len(bad)} of {num_samples} samples could not be"
            f" used{_too_many_message(max_bad, folder, bad)}"
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


def _most_common(bad: Mapping[str, str]) -> str:
    """Return the most common reasons with their counts."""
    return "; ".join(
        f"{why} ({count} times)" for why, count in Counter(bad.values()).most_common(3)
    )


def _too_many_message(max_bad: float, folder: Folder, bad: Mapping[str, str]) -> str:
    """Return the end of a message: reasons, examples and advice."""
    allowed = f"more than max_bad ({max_bad:g}) allows, such as {', '.join(list(bad)[:3])}"
    return (
        f": {_most_common(bad)}, {allowed}. {advise_on_bad_samples(set(bad.values()), str(folder))}"
    )

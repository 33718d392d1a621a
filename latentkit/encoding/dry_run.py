"""Describes what a run would do, without doing it."""

from __future__ import annotations

from latentkit.contracts import StreamSource
from latentkit.encoding.encode_source import is_finished, read_matching_plans
from latentkit.encoding.make_plan import (
    EncodeInputs,
    EncodeSettings,
    describe_changes,
    find_changes,
    refuse_large_removal,
)
from latentkit.store.contents import counted
from latentkit.store.folder import Folder
from latentkit.store.index import committed_units


def describe_run(folder: Folder, inputs: EncodeInputs, settings: EncodeSettings) -> str:
    """Describe in one line what `encode_source` would do. Nothing is written.

    Raises:
        FingerprintError, SourceError, StoreError: `encode_source` would fail.
    """
    chain = read_matching_plans(folder, inputs, settings)
    if not chain:
        things = counted(
            inputs.entries.num_rows,
            "shard" if isinstance(inputs.source, StreamSource) else "sample",
        )
        return (
            f"{folder}: {things} to encode, {counted(len(inputs.views), 'view')} of each"
            f" ({', '.join(inputs.views)})"
        )
    if not is_finished(folder, chain[-1]):
        units, done = chain[-1].units(), committed_units(folder)
        left = [unit for unit in units if unit.name not in done]
        num_left = sum(unit.stop - unit.start for unit in left)
        things = (
            f"{num_left} of {chain[-1].num_samples} samples are left to encode, in {len(left)} of"
            f" {len(units)} units"
        )
        return f"{folder}: unfinished; {things}"
    changes = find_changes(folder, chain[-1], inputs, settings.retry_skipped)
    if not changes.counts:
        return f"{folder}: finished, and the source has not changed; nothing to do"
    refuse_large_removal(folder, changes, settings.prune)
    return describe_changes(folder, changes)

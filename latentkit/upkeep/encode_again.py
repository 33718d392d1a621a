"""Encode units of a latent dataset again, with the settings they were made with, into another
folder.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import (
    Entry,
    Modality,
    Sample,
    Source,
    StreamSource,
    TaskContext,
    Unit,
)
from latentkit.encoding.encode_source import all_parts, make_job
from latentkit.encoding.make_plan import effective_settings
from latentkit.encoding.unit_workers import make_worker
from latentkit.errors import SampleError, SourceError, StoreError
from latentkit.recipe.schema import EncodeRecipe
from latentkit.store.columns import find_places
from latentkit.store.fingerprint import check_parts
from latentkit.store.index import ReadUnit
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import Plan, PlanSettings
from latentkit.tasks.build_parts import configured_encode_of
from latentkit.tasks.encode_task import BuiltEncode, build_encode
from latentkit.upkeep.findings import Verification

NO_LONGER_NEEDED = "superseded by a later run, and left out when its unit was encoded again"


def build_encode_of(found: Verification, device: str = "auto") -> BuiltEncode:
    """Return source, encoder and settings of the dataset, the encoder on a device.

    Raises:
        FingerprintError: source, encoder and settings would make other latents now.
        LatentkitError: the recipe, the source or the encoder is missing.
    """
    if not found.plans:
        raise StoreError(f"{found.folder} has no plan that can be read")
    line = configured_encode_of(found.folder)
    assert isinstance(line.recipe, EncodeRecipe)
    opened = replace(
        build_encode(line, line.recipe, TaskContext(device=device)), folder=found.folder
    )
    check_parts(
        found.folder,
        found.plans[found.newest].settings.parts,
        all_parts(opened.inputs, opened.settings),
        opened.inputs.defaults,
    )
    return opened


def encode_again(
    found: Verification, opened: BuiltEncode, names: Collection[str], workspace: Path
) -> LocalFolder:
    """Encode the units with these names into `workspace`, without seeking in media if possible.

    Raises:
        SourceError: the source no longer has the samples of these units.
    """
    again = LocalFolder(workspace)
    modality = without_seeking(opened.inputs.modality)
    for plan in found.plans.values():
        units = [unit for unit in plan.units() if unit.name in names]
        if not units:
            continue
        source = _source_of_plan(found, plan, units, opened)
        job = make_job(
            again,
            plan,
            replace(opened.inputs, source=source, modality=modality),
            opened.settings,
            False,
        )
        for unit in units:
            settings = _settings_of(
                found.units.get(unit.name), effective_settings(plan.settings, opened.settings)
            )
            for _ in make_worker(
                replace(job, settings=settings, on_bad_sample="skip"), opened.device
            )(iter([unit])):
                pass
    return again


def without_seeking(modality: Modality) -> Modality:
    """Return a modality that decodes every file from its start; the same one if it never seeks.

    A seek may have gone wrong when the unit was made, so it can't be used to check the unit.
    """
    make = getattr(modality, "without_seeking", None)
    return modality if make is None else cast(Modality, make())


def _settings_of(unit: ReadUnit | None, planned: PlanSettings) -> PlanSettings:
    """Return the settings that made a unit: those in its header, where it can be read."""
    recorded = json.loads(unit.header.metadata.get("settings", "{}")) if unit else {}
    return replace(
        planned,
        **{
            name: recorded[name]
            for name in ("batch_size", "threads", "compile")
            if name in recorded
        },
    )


@dataclass(frozen=True)
class PlannedSource:
    """A source with the rows and keys of an older plan; rows that aren't needed are bad samples."""

    source: Source
    keys: Sequence[str]
    stamps: Sequence[str]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Sample:
        place = int(self.places[index])
        if place < 0:
            raise SampleError(NO_LONGER_NEEDED)
        return replace(self.source[place], key=self.keys[index])

    def entries(self) -> Iterator[Entry]:
        """Iterate over the keys and stamps of the plan."""
        yield from map(Entry, self.keys, self.stamps)


def _source_of_plan(
    found: Verification, plan: Plan, units: Sequence[Unit], opened: BuiltEncode
) -> Source | StreamSource:
    """Return a source that finds the units' samples by the keys that the plan gives them.

    Raises:
        StoreError: the source no longer has one of these samples.
    """
    source, current = opened.inputs.source, opened.inputs.entries
    needed = np.zeros(plan.num_samples, np.bool_)
    for unit in units:
        needed[unit.start : unit.stop] = True
    if isinstance(source, StreamSource):
        there = set(_shards(current))
        _raise_for_missing(
            found,
            [
                shard[0]
                for shard in _shards(plan.work.filter(pa.array(needed)))
                if shard not in there
            ],
        )
        return source
    keys = _keys_now(found, plan)
    places = find_places(keys, current["key"])
    # A sample without a key was removed or replaced by a later plan, which counts as no loss.
    gone = needed & (places < 0) & keys.is_valid().to_numpy()
    _raise_for_missing(found, plan.work["key"].filter(pa.array(gone)).to_pylist())
    return PlannedSource(
        source, plan.work["key"].to_pylist(), plan.work["stamp"].to_pylist(), places
    )


def _shards(table: pa.Table) -> Iterator[tuple[str, str]]:
    return zip(table["key"].to_pylist(), table["stamp"].to_pylist(), strict=True)


def _raise_for_missing(found: Verification, gone: Sequence[str]) -> None:
    """Raise an error if samples of the units are gone."""
    if gone:
        what = (
            f"{len(gone)} samples of units to encode again were changed in or removed from the"
            f" source, such as {gone[0]!r}"
        )
        raise SourceError(f"{found.folder}: {what}; put them back, or encode into another folder")


def _keys_now(found: Verification, plan: Plan) -> pa.ChunkedArray:
    """Return the key under which the newest plan has each sample of a plan; else null."""
    keys = plan.work["key"]
    for number in range(plan.number + 1, found.newest + 1):
        later = found.plans.get(number)
        if later is None or later.settings.compacts:
            continue
        keys = later.table["key"].take(
            pc.index_in(keys, value_set=later.table["previous"].combine_chunks(), skip_nulls=True)
        )
    return keys

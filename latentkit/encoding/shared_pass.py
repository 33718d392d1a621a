"""Encodes one source with several encoders in one pass: each sample is prepared once and encoded by
all that lack its latents.

Every encoder has its own latent dataset, plan and fingerprint. The pass commits their units. What
it leaves, because a dataset was finished before or another process works on it, `encode_source`
does separately for each.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from latentkit.contracts import Executor, InputSpec, Modality, Unit
from latentkit.contracts.encoder_description import readable_input
from latentkit.encoding.encode_job import EncodeJob, JobResult
from latentkit.encoding.encode_source import (
    EncodeSummary,
    add_result,
    is_finished,
    make_job,
    read_or_make_plans,
    write_recipe,
)
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings, next_plan
from latentkit.encoding.unit_workers import make_shared_worker
from latentkit.store.claims import Claims
from latentkit.store.folder import Folder
from latentkit.store.index import committed_units
from latentkit.store.plan import Plan, plan_numbers


@dataclass(frozen=True)
class EncodeTarget:
    """A latent dataset to make.

    Args:
        inputs, settings: as for `encode_source`; the source is the same for all targets of a pass.
    """

    folder: Folder
    inputs: EncodeInputs
    settings: EncodeSettings
    recipe_text: str


@dataclass(frozen=True)
class SharedPassResult:
    """Result of the pass for a target, and whether its newest plan is known to match the source."""

    summary: EncodeSummary
    is_compared: bool


@dataclass(frozen=True)
class Group:
    """Names of encoders that take the same tensors, and the modality that prepares them."""

    names: list[str]
    modality: Modality


def group_by_input(inputs: Mapping[str, EncodeInputs], device: str) -> list[Group]:
    """Group the encoders by what is prepared for them. In a group they take the same input except
    for sizes; a modality may refuse sizes but not depend on them.

    Args:
        inputs: by name of the encoder.
    """
    groups: list[Group] = []
    taken: list[InputSpec] = []
    for name, one in inputs.items():
        encoder, modality = one.open_encoder(device), one.modality
        spec = readable_input(encoder.input, encoder.layout, encoder.normalization)
        if getattr(modality, "ignores_sizes", False):
            spec = replace(spec, sizes={})
        if spec in taken:
            groups[taken.index(spec)].names.append(name)
        else:
            groups.append(Group([name], modality))
            taken.append(spec)
    return groups


def encode_in_one_pass(
    targets: Sequence[EncodeTarget],
    modality: Modality,
    executor: Executor,
    device: str,
    show_progress: bool,
) -> list[SharedPassResult]:
    """Return what the pass did for each of the targets: nothing for one that shares no units with
    another.

    `modality` prepares for all of them.

    Raises:
        FingerprintError, SourceError, StoreError: as `encode_source`.
    """
    begun = time.monotonic()
    planned = _agree_on_plans(targets, device)
    jobs = _shared_jobs(targets, [plan for plan, _ in planned], show_progress)
    jobs = {place: replace(job, modality=modality) for place, job in jobs.items()}
    places, summaries = list(jobs), [EncodeSummary() for _ in targets]
    units = _units_missing_in_several(list(jobs.values())) if len(jobs) > 1 else []
    worker = functools.partial(make_shared_worker, list(jobs.values()))
    for result in executor.run(units, worker) if units else ():
        place = places[result.job if isinstance(result, JobResult) else 0]
        summaries[place] = add_result(
            jobs[place], summaries[place], result, targets[place].settings.max_bad
        )
    seconds = time.monotonic() - begun if units else 0.0
    return [
        SharedPassResult(replace(summary, seconds=seconds), compared)
        for summary, (_, compared) in zip(summaries, planned, strict=True)
    ]


def _agree_on_plans(targets: Sequence[EncodeTarget], device: str) -> list[tuple[Plan, bool]]:
    """Return the newest plan of each target, and whether it was just made or compared with the
    source.

    First plans use the unit size of the first target, so that units contain the same samples.
    """
    planned: list[tuple[Plan, bool]] = []
    for target in targets:
        settings = target.settings
        if planned and settings.unit_size == "auto":
            settings = replace(settings, unit_size=planned[0][0].settings.unit_size)
        is_new = not plan_numbers(target.folder)
        plan = read_or_make_plans(target.folder, target.inputs, device, settings)[-1]
        if is_new:
            write_recipe(target.folder, target.recipe_text)
        if is_compared := is_new or is_finished(target.folder, plan):
            plan = (
                None if is_new else next_plan(target.folder, plan, target.inputs, settings)
            ) or plan
        planned.append((plan, is_compared))
    return planned


def _shared_jobs(
    targets: Sequence[EncodeTarget], plans: Sequence[Plan], show_progress: bool
) -> dict[int, EncodeJob]:
    """Return the jobs of unfinished targets by index, if their units contain the same samples as
    the first one's.
    """
    jobs: dict[int, EncodeJob] = {}
    for place, (target, plan) in enumerate(zip(targets, plans, strict=True)):
        if not plan.settings.compacts and not is_finished(target.folder, plan):
            job = make_job(target.folder, plan, target.inputs, target.settings, show_progress)
            write_recipe(target.folder, target.recipe_text)
            if not jobs or _are_alike(next(iter(jobs.values())), job):
                jobs[place] = job
    return jobs


def _are_alike(one: EncodeJob, other: EncodeJob) -> bool:
    """Return whether both jobs' units contain the same samples and are encoded with the same number
    of threads.
    """
    if (
        one.settings.threads != other.settings.threads
        or one.plan.settings.stream != other.plan.settings.stream
    ):
        return False
    return all(one.plan.work[name].equals(other.plan.work[name]) for name in ("key", "unit"))


def _units_missing_in_several(jobs: Sequence[EncodeJob]) -> list[Unit]:
    """Return the first job's units that no process works on and that several jobs lack."""
    num_lacking: Counter[int] = Counter()
    for job in jobs:
        done = committed_units(job.folder)
        left = [unit for unit in job.plan.units() if unit.name not in done]
        free = Claims(job.folder).find_free([unit.name for unit in left])
        num_lacking.update(unit.number for unit in left if unit.name in free)
    return [unit for unit in jobs[0].plan.units() if num_lacking[unit.number] > 1]

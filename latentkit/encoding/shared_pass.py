"""Several encoders over one source in one pass: each sample is prepared once and encoded by all
that lack its latents.

Every encoder has a latent dataset, plan and fingerprint of its own. The pass commits units of them,
and what it leaves (because one was finished before, or another process is working on it)
`encode_source` does for each as if there were no other.
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
    plans_there,
    write_recipe,
)
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings, next_plan
from latentkit.encoding.unit_workers import make_shared_worker
from latentkit.store.claims import Claims
from latentkit.store.folder import Folder
from latentkit.store.index import committed
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
    """What the pass did for a target, and whether its plan was compared with the source."""

    summary: EncodeSummary
    is_compared: bool


@dataclass(frozen=True)
class Group:
    """Names of encoders that take the same tensors, and the modality that prepares them."""

    names: list[str]
    modality: Modality


def group_by_input(inputs: Mapping[str, EncodeInputs], device: str) -> list[Group]:
    """Group encoders that take the same, but for sizes where the modality `ignores_sizes`.

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
    """What the pass did for each of the targets: nothing where no other shares units with it.

    `modality` prepares for all of them.

    Raises:
        FingerprintError, SourceError, StoreError: as `encode_source`.
    """
    begun = time.monotonic()
    planned = _agree_on_plans(targets, device)
    jobs = _shared_jobs(targets, [plan for plan, _ in planned], show_progress)
    jobs = {place: replace(job, modality=modality) for place, job in jobs.items()}
    places, summaries = list(jobs), [EncodeSummary() for _ in targets]
    units = _lacked_by_several(list(jobs.values())) if len(jobs) > 1 else []
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
    """The newest plan of each target, and whether it was made or compared with the source just now.

    First plans take the unit size of the first target's, so that units hold the same samples.
    """
    planned: list[tuple[Plan, bool]] = []
    for target in targets:
        settings = target.settings
        if planned and settings.unit_size == "auto":
            settings = replace(settings, unit_size=planned[0][0].settings.unit_size)
        is_new = not plan_numbers(target.folder)
        plan = plans_there(target.folder, target.inputs, device, settings)[-1]
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
    """Return the unfinished jobs, by place, whose units hold the first one's samples."""
    jobs: dict[int, EncodeJob] = {}
    for place, (target, plan) in enumerate(zip(targets, plans, strict=True)):
        if not plan.settings.compacts and not is_finished(target.folder, plan):
            job = make_job(target.folder, plan, target.inputs, target.settings, show_progress)
            write_recipe(target.folder, target.recipe_text)
            if not jobs or _are_alike(next(iter(jobs.values())), job):
                jobs[place] = job
    return jobs


def _are_alike(one: EncodeJob, other: EncodeJob) -> bool:
    """Return whether units hold the same samples, encoded by as many threads."""
    if (
        one.settings.threads != other.settings.threads
        or one.plan.settings.stream != other.plan.settings.stream
    ):
        return False
    return all(one.plan.work[name].equals(other.plan.work[name]) for name in ("key", "unit"))


def _lacked_by_several(jobs: Sequence[EncodeJob]) -> list[Unit]:
    """The first job's units of those numbers that nobody is working on and several jobs lack."""
    num_lacking: Counter[int] = Counter()
    for job in jobs:
        done = committed(job.folder)
        left = [unit for unit in job.plan.units() if unit.name not in done]
        free = Claims(job.folder).find_free([unit.name for unit in left])
        num_lacking.update(unit.number for unit in left if unit.name in free)
    return [unit for unit in jobs[0].plan.units() if num_lacking[unit.number] > 1]

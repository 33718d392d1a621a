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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from latentkit.contracts import Executor, InputSpec, Modality, SizeRule, Unit
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
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings, next_plan, preview_views
from latentkit.encoding.unit_workers import make_shared_worker
from latentkit.errors import PluginError
from latentkit.store.claims import Claims
from latentkit.store.folder import Folder
from latentkit.store.index import committed_units
from latentkit.store.plan import Plan, plan_numbers

NUM_PROBED = 3
"""Samples that are prepared to find out whether a modality asks for sizes while it prepares."""

BuildModality = Callable[[InputSpec], Modality]
"""Takes an encoder's input description and returns the modality that prepares for it."""

SIZES_DIFFER_MESSAGE = (
    "for some samples, the modality asks which sizes the encoder accepts, and the encoders of this"
    " recipe differ in these. Use a separate recipe for each encoder"
)


@dataclass(frozen=True)
class EncodeTarget:
    """A latent dataset to make.

    Args:
        folder: folder of the dataset.
        inputs, settings: as for `encode_source`; the source is the same for all targets of a pass.
        recipe_text: content of its recipe.yaml.
    """

    folder: Folder
    inputs: EncodeInputs
    settings: EncodeSettings
    recipe_text: str


@dataclass(frozen=True)
class SharedPassResult:
    """What the pass did for a target, and whether its newest plan is known to match the source."""

    summary: EncodeSummary
    is_compared: bool


@dataclass(frozen=True)
class Group:
    """Names of encoders for which samples are prepared to the same tensors, and the modality that
    prepares them.
    """

    names: Sequence[str]
    modality: Modality


def group_by_input(
    builders: Mapping[str, BuildModality], inputs: Mapping[str, EncodeInputs], device: str
) -> list[Group]:
    """Group the encoders by what is prepared for them. In a group they take the same input except
    for sizes; a modality may refuse sizes but not depend on them.

    Args:
        builders: builder of the modality for each encoder, by name.
        inputs: by name of the encoder.
        device: device of the encoders.

    Raises:
        SourceError: the source has no samples or can't be reached.
    """
    encoders = {name: inputs[name].open_encoder(device) for name in builders}
    specs = {
        name: readable_input(one.input, one.layout, one.normalization)
        for name, one in encoders.items()
    }
    groups = []
    for names in _group_equal({name: replace(spec, sizes={}) for name, spec in specs.items()}):
        parts, first = _group_equal({name: specs[name] for name in names}), names[0]
        if len(parts) > 1 and (
            modality := _build_without_sizes(
                builders[first], inputs[first], [specs[part[0]] for part in parts]
            )
        ):
            groups.append(Group(names, modality))
        else:
            groups += [Group(part, inputs[part[0]].modality) for part in parts]
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


# ---------------------------------------------------------------- what is prepared alike


def _group_equal(specs: Mapping[str, InputSpec]) -> list[list[str]]:
    """Return groups of names with equal specs."""
    groups: list[list[str]] = []
    for name, spec in specs.items():
        group = next((group for group in groups if specs[group[0]] == spec), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups


class _SizesMatterError(PluginError):
    """A modality asked for something that differs between the encoders that it prepares for."""


class _CommonRule:
    """Replaces several encoders' size rules for an axis. It answers only what is the same for all
    of them, and only while `may_ask` is set.
    """

    def __init__(self, rules: Sequence[SizeRule]) -> None:
        self._rules, self.may_ask = rules, True

    def allows(self, size: int) -> bool:
        answers = {rule.allows(size) for rule in self._rules}
        if not self.may_ask or len(answers) > 1:
            raise _SizesMatterError(SIZES_DIFFER_MESSAGE)
        return answers.pop()

    def __eq__(self, other: object) -> NoReturn:
        raise _SizesMatterError(SIZES_DIFFER_MESSAGE)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)  # copying and pickling look for these
        raise _SizesMatterError(SIZES_DIFFER_MESSAGE)


def _build_without_sizes(
    build: BuildModality, inputs: EncodeInputs, specs: Sequence[InputSpec]
) -> Modality | None:
    """Build the modality so that it can't distinguish the specs, which differ in sizes. Return None
    if it must.

    Preparing samples for each spec and comparing them would prove little: a modality may round only
    the lengths of short audio clips, and the last image may be the first of its bucket. But a
    modality that learns nothing about the rules, except answers on single sizes that are the same
    for all while it is built, must prepare the same for every spec. So that modality is used for
    the pass and can't go wrong unnoticed. The first samples show whether it asks for more while it
    prepares; if none is usable, that stays unknown.
    """
    axes = {
        axis: [spec.sizes.get(axis, SizeRule()) for spec in specs]
        for spec in specs
        for axis in spec.sizes
    }
    common = {
        axis: _CommonRule(rules)
        for axis, rules in axes.items()
        if any(rule != rules[0] for rule in rules)
    }
    sizes: dict[str, Any] = {axis: common.get(axis, rules[0]) for axis, rules in axes.items()}
    try:
        modality = build(replace(specs[0], sizes=sizes))
    except Exception:  # noqa: BLE001 (plugin boundary)
        return None
    for rule in common.values():
        rule.may_ask = False
    try:
        probed = preview_views(
            replace(inputs, modality=modality), min(NUM_PROBED, inputs.entries.num_rows)
        )
    except _SizesMatterError:
        return None
    return modality if probed else None

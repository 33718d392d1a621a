"""Plan, units, index: from a source to a finished latent dataset, alone or with other processes, resumable at any point."""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from latentkit.contracts import Encoder, Entry, Executor, Modality, Prepared, Sample, Source, StreamSource, UnitResult
from latentkit.errors import FingerprintError, SampleError, SourceError, StoreError
from latentkit.measure import Measured, choose_unit_size, measure_batches
from latentkit.numerics import fixed_numerics, num_cores
from latentkit.pipeline import EncodeJob, give, make_worker, read_shard
from latentkit.retry import retried
from latentkit.store.claims import Claims
from latentkit.store.columns import escape
from latentkit.store.folder import Folder, host
from latentkit.store.index import DATASET, RECIPE, Description, committed, finalize, read_dataset, read_index
from latentkit.store.plan import Plan, PlanSettings, build_plan, counting_parts, newest_plan, write_plan

POLL_SECONDS = 0.5
MAX_PROBED = 1000
MAX_BAD_COUNT = 10
"""So many bad samples never end a run by their share."""

COMPILE_FROM_SECONDS = 600.0
"""`compile: auto` compiles on a GPU when encoding is going to take so long."""

LIBRARIES = ("latentkit", "torch", "diffusers", "pillow")


@dataclass(frozen=True)
class EncodeSettings:
    """The numbers and words of an encode recipe; "auto" is measured when the plan is made."""

    store: Literal["moments", "mean", "sample"] = "moments"
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    unit_size: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    seed: int = 0
    on_bad_sample: Literal["skip", "fail"] = "skip"
    max_bad: float = 0.05


@dataclass(frozen=True)
class EncodeInputs:
    """What is encoded and by what.

    Args:
        source, modality: built.
        views: names of the views that the modality gives of each sample.
        open_encoder: device to encoder; called again for the same device, it gives the same one.
        parts: name to value of all that decides a latent's value, besides what `settings` adds.
        described_source: what dataset.json says of the source.
    """

    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    open_encoder: Callable[[str], Encoder]
    parts: Mapping[str, str]
    described_source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EncodeSummary:
    """What a run did in this process, in seconds of the clock; no row when there was nothing left to do."""

    num_ok: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0


def encode_source(
    folder: Folder,
    inputs: EncodeInputs,
    executor: Executor,
    device: str,
    settings: EncodeSettings,
    recipe_text: str,
    *,
    show_progress: bool = True,
) -> EncodeSummary:
    """Encode everything that isn't yet, and write index and dataset.json when all units are there.

    Returns in every process when the dataset is closed.

    Args:
        folder: of the latent dataset; missing, empty, or left by an earlier run.
        executor, device: what runs units, and the device this process measures on.
        recipe_text: content of the dataset's recipe.yaml.
        show_progress: whether to print the live line.

    Raises:
        FingerprintError: the folder holds latents made with other weights or settings.
        SourceError: the source is empty, changed, can't be reached, or too many of its samples are bad.
        StoreError: the folder can't be used.
    """
    parts = all_parts(inputs, settings)
    if folder.exists(DATASET):
        _check_finished(folder, inputs, parts)
        return EncodeSummary()
    _check_ours(folder)
    plan = newest_plan(folder) or _agree_on_plan(folder, inputs, device, settings, parts)
    _check_parts(folder, plan.settings.parts, parts)
    if not folder.exists(RECIPE) or folder.read(RECIPE) != recipe_text.encode():
        folder.replace(RECIPE, recipe_text.encode())
    job = EncodeJob(
        folder, plan, inputs.source, inputs.modality, inputs.views, inputs.open_encoder, settings.store, settings.dtype, settings.seed,
        settings.on_bad_sample, _settings_in_force(plan.settings, settings), _places(folder, plan, inputs.source), show_progress,
    )  # fmt: skip
    summary = _run_units(job, executor, settings)
    if not folder.exists(DATASET):
        described = _describe(inputs, inputs.open_encoder(device), settings)
        finalize(folder, plan, described, functools.partial(_check_bad, folder, settings.max_bad))
    Claims(folder).sweep()
    return summary


def _describe(inputs: EncodeInputs, encoder: Encoder, settings: EncodeSettings) -> Description:
    views = list(inputs.views)
    return Description(encoder.layout, encoder.normalization, settings.store, settings.dtype, inputs.described_source, views)


def all_parts(inputs: EncodeInputs, settings: EncodeSettings) -> dict[str, str]:
    """Name to value of everything that decides a latent's value."""
    drawn = {"seed": str(settings.seed)} if settings.store == "sample" else {}
    return {**inputs.parts, "store": settings.store, "dtype": settings.dtype, **drawn}


# ---------------------------------------------------------------- the plan


def _agree_on_plan(folder: Folder, inputs: EncodeInputs, device: str, settings: EncodeSettings, parts: Mapping[str, str]) -> Plan:
    """The plan of the first process to arrive; the others wait for it. A run that can't make one leaves nothing behind."""
    claims = Claims(folder)
    try:
        with claims.beating():
            while True:
                if claims.take("plan"):
                    if newest_plan(folder) is None:
                        write_plan(folder, _make_plan(inputs, device, settings, parts))
                    claims.drop("plan")
                plan = newest_plan(folder)
                if plan is not None:
                    return plan
                time.sleep(POLL_SECONDS)
    finally:
        folder.discard_if_empty()


def _make_plan(inputs: EncodeInputs, device: str, settings: EncodeSettings, parts: Mapping[str, str]) -> Plan:
    stream = isinstance(inputs.source, StreamSource)
    threads = num_cores() if settings.threads == "auto" else settings.threads
    entries = _entries(inputs.source)
    measured = _measure(inputs, device, settings, threads)
    unit_size = settings.unit_size
    if unit_size == "auto":
        unit_size = 1 if stream else choose_unit_size(len(entries), len(inputs.views), measured)
    compiled = settings.compile
    if compiled == "auto":
        compiled = device.startswith("cuda") and len(entries) * len(inputs.views) * measured.seconds_per_row > COMPILE_FROM_SECONDS
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return build_plan(0, entries, PlanSettings(parts, measured.batch_size, unit_size, threads, compiled, versions, stream))


def _entries(source: Source | StreamSource) -> list[Entry]:
    if isinstance(source, StreamSource):
        return [Entry(shard.name, shard.stamp) for shard in source.shards()]
    return list(source.entries())


def _measure(inputs: EncodeInputs, device: str, settings: EncodeSettings, threads: int) -> Measured:
    """Batch size and cost per row; nothing is run when the recipe leaves nothing to find out."""
    prepared = _first_good(inputs)
    if settings.batch_size != "auto" and settings.unit_size != "auto" and settings.compile != "auto":
        return Measured(settings.batch_size, 0.0, 0)
    with fixed_numerics(threads, device):
        batch_size = None if settings.batch_size == "auto" else settings.batch_size
        encoder, dtype = inputs.open_encoder(device), getattr(torch, settings.dtype)
        return measure_batches(encoder, prepared, device, settings.store, dtype, batch_size)


def _first_good(inputs: EncodeInputs) -> Prepared:
    """A view of the first sample that can be used, of the first few."""
    reasons = []
    for sample in _first_samples(inputs.source):
        try:
            return retried(lambda sample=sample: next(iter(inputs.modality.prepare(sample()))), "the source's first sample")  # type: ignore[misc]
        except SampleError as error:
            reasons.append(str(error))
    if not reasons:
        raise SourceError("the source has no samples")
    raise SourceError(f"none of the first {len(reasons)} samples can be used; the first: {reasons[0]}")


def _first_samples(source: Source | StreamSource) -> Iterator[Callable[[], Sample]]:
    if isinstance(source, StreamSource):
        samples = (sample for shard in source.shards() for sample in read_shard(source, shard))
        for sample in itertools.islice(samples, MAX_PROBED):
            yield functools.partial(give, sample)
        return
    for index in range(min(len(source), MAX_PROBED)):
        yield functools.partial(source.__getitem__, index)


def _settings_in_force(planned: PlanSettings, settings: EncodeSettings) -> PlanSettings:
    """The plan's settings, with what the recipe now says explicitly; that holds for the units left and each records it."""
    given = {
        name: value for name in ("batch_size", "threads", "compile") if (value := getattr(settings, name)) != "auto"
    }
    return replace(planned, **given)


def _places(folder: Folder, plan: Plan, source: Source | StreamSource) -> npt.NDArray[np.int64] | None:
    """Where each row of the plan now is in the source, by key: samples may have come since the plan was made. -1: gone, and not needed.

    Raises:
        SourceError: samples of the units that are left are gone, or most of them changed.
    """
    if isinstance(source, StreamSource):
        return None
    now = {escape(entry.key): (place, escape(entry.stamp)) for place, entry in enumerate(source.entries())}
    planned = list(zip(plan.table["key"].to_pylist(), plan.table["stamp"].to_pylist(), strict=True))
    done = committed(folder)
    left = {row for unit in plan.units() if unit.name not in done for row in range(unit.start, unit.stop)}
    gone = [key for row, (key, _) in enumerate(planned) if row in left and key not in now]
    changed = [key for row, (key, stamp) in enumerate(planned) if row in left and key in now and now[key][1] != stamp]
    # A few mended pictures are what the user meant; mostly others are another source under the same names.
    if gone or 2 * len(changed) > len(left):
        raise SourceError(
            f"{folder} was begun with {len(planned)} samples; of the {len(left)} that are left, {len(gone)} are gone from the source and "
            f"{len(changed)} changed, such as {(gone or changed)[0]!r}; put them back, or write to another output"
        )
    return np.array([now[key][0] if key in now else -1 for key, _ in planned], np.int64)


# ---------------------------------------------------------------- the units


def _run_units(job: EncodeJob, executor: Executor, settings: EncodeSettings) -> EncodeSummary:
    """Do this process's share, then what nobody does, then wait for the others."""
    summary, begun = EncodeSummary(), time.monotonic()
    num_samples, claims = job.plan.num_samples, Claims(job.folder)
    said_waiting = False
    while True:
        done = committed(job.folder)
        left = [unit for unit in job.plan.units() if unit.name not in done]
        if not left:
            return replace(summary, seconds=time.monotonic() - begun)
        free = [unit for unit in left if claims.is_free(unit.name)]
        for result in executor.run(free, functools.partial(make_worker, job)):
            summary = _add(summary, result)
            _log(job.folder, result)
            num_bad = summary.num_skipped // len(job.views)
            if not job.plan.settings.stream and _is_too_bad(num_bad, num_samples, settings.max_bad):
                so_far = f"{num_bad} of {num_samples} samples could not be used so far"
                raise SourceError(so_far + _more_than(settings.max_bad, job.folder))
        if not free:
            holders = claims.holders()
            if holders and not said_waiting:
                print(f"waiting for {', '.join(holders)}, at work on the last units", file=sys.stderr)
                said_waiting = True
            time.sleep(POLL_SECONDS)


def _log(folder: Folder, result: UnitResult) -> None:
    """A line in this process's log; what it holds is never compared."""
    line = {"unit": result.unit.name, "ok": result.num_ok, "skipped": result.num_skipped}
    line |= {"seconds": round(result.seconds, 3), "waited_seconds": round(result.waited_seconds, 3), "time": round(time.time(), 3)}
    folder.append(f"events/{host()}-{os.getpid()}.jsonl", json.dumps(line))


def _add(summary: EncodeSummary, result: UnitResult) -> EncodeSummary:
    return EncodeSummary(
        summary.num_ok + result.num_ok,
        summary.num_skipped + result.num_skipped,
        0.0,
        summary.waited_seconds + result.waited_seconds,
    )


def _is_too_bad(num_bad: int, num_all: int, max_bad: float) -> bool:
    return num_bad > MAX_BAD_COUNT and num_bad > max_bad * num_all


def _more_than(max_bad: float, folder: Folder) -> str:
    advice = f"Mend the source and write to another output, or raise max_bad and run {folder}/recipe.yaml again"
    return f", more than max_bad ({max_bad:g}) allows. {advice}"


def _check_bad(folder: Folder, max_bad: float, reason_by_key: Mapping[str, str | None]) -> None:
    """Refuse to finish a dataset of mostly bad samples; the reason is None for a good one."""
    bad = Counter(reason for reason in reason_by_key.values() if reason is not None)
    common = "; ".join(f"{reason} ({count} times)" for reason, count in bad.most_common(3))
    if bad.total() == len(reason_by_key):
        raise SourceError(f"none of the {len(reason_by_key)} samples could be used: {common}")
    if _is_too_bad(bad.total(), len(reason_by_key), max_bad):
        raise SourceError(f"{bad.total()} of {len(reason_by_key)} samples could not be used: {common}{_more_than(max_bad, folder)}")


# ---------------------------------------------------------------- what is there already


def _check_ours(folder: Folder) -> None:
    """An empty folder, or one that a run of ours left unfinished."""
    if folder.list("plans"):
        return
    foreign = sorted(folder.top_names() - {"claims", "plans"})
    if foreign:
        raise StoreError(f"{folder} holds something else ({', '.join(foreign[:3])}); give the latent dataset a folder of its own")


def _check_parts(folder: Folder, there: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    there, wanted = counting_parts(there), counting_parts(wanted)
    different = [name for name in sorted({*there, *wanted}) if there.get(name) != wanted.get(name)]
    if different:
        lines = [f"  {name}: {_short(there.get(name))} there, {_short(wanted.get(name))} now" for name in different]
        raise FingerprintError(
            "\n".join([f"{folder} holds latents that were made otherwise:", *lines, "Write to another output, or set these back"])
        )


def _short(value: str | None) -> str:
    if value is None:
        return "not set"
    return value if len(value) <= 60 else f"{value[:16]}..."


def _check_finished(folder: Folder, inputs: EncodeInputs, parts: Mapping[str, str]) -> None:
    """A finished dataset of the same settings and an unchanged source.

    Raises:
        FingerprintError: settings differ; SourceError: the source does.
    """
    document = read_dataset(folder)
    _check_parts(folder, document["parts"], parts)
    if isinstance(inputs.source, StreamSource):
        return
    index = read_index(folder, document, ["key", "stamp"])
    before = dict(zip(index["key"].to_pylist(), index["stamp"].to_pylist(), strict=True))
    now = {escape(entry.key): escape(entry.stamp) for entry in inputs.source.entries()}
    added, removed = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(before[key] != now[key] for key in before.keys() & now.keys())
    if added or removed or changed:
        raise SourceError(
            f"{folder} is finished, and its source has changed since: {added} samples added, {removed} removed, {changed} changed. "
            "This version can't add to a finished dataset; write to another output"
        )

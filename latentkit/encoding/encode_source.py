"""Makes a latent dataset from a source: plan, units, index. Several processes can do it together,
and it can be resumed at any point.
"""

from __future__ import annotations

import enum
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from latentkit.contracts import Encoder, Executor, StreamSource, UnitResult
from latentkit.encoding.bad_sample_checks import (
    check_bad_samples_in_index,
    check_bad_samples_so_far,
)
from latentkit.encoding.encode_job import EncodeJob
from latentkit.encoding.int8_psnr import measure_psnr
from latentkit.encoding.make_plan import (
    POLL_SECONDS,
    EncodeInputs,
    EncodeSettings,
    effective_settings,
    first_plan,
    next_plan,
    preview_views,
    warn_of_other_versions,
)
from latentkit.encoding.removed_shards import WithRemovedShards
from latentkit.encoding.unit_workers import make_worker
from latentkit.errors import DamagedError, SourceError, StoreError
from latentkit.runtime.masks import without_mask
from latentkit.runtime.numerics import fixed_numerics
from latentkit.store.claims import Claims
from latentkit.store.columns import find_places
from latentkit.store.compact import finish_compaction
from latentkit.store.dataset_json import (
    DATASET,
    RECIPE,
    Description,
    finalize,
    newest_number,
    read_dataset,
)
from latentkit.store.fingerprint import check_parts
from latentkit.store.folder import Folder
from latentkit.store.index import committed_units
from latentkit.store.plan import Plan, read_chain


@dataclass(frozen=True)
class EncodeSummary:
    """Summary of a run in this process. It has no rows if there was nothing to do.

    Args:
        num_ok, num_skipped: rows stored, and rows skipped.
        waited_seconds: how long the encoder waited for samples.
        num_slots: rows that its batches had space for; 0 if not counted.
    """

    num_ok: int = 0
    num_skipped: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    num_slots: int = 0

    def __add__(self, other: EncodeSummary) -> EncodeSummary:
        return EncodeSummary(
            *(getattr(self, field.name) + getattr(other, field.name) for field in fields(self))
        )


class State(enum.Enum):
    """The state of a folder, which decides what `encode_source` does.

    | state      | the folder holds                     | so                      | then           |
    |------------|--------------------------------------|-------------------------|----------------|
    | NO_PLAN    | nothing                              | make the first plan, or | UNFINISHED     |
    |            |                                      | take another process's  |                |
    | UNFINISHED | a plan, whoever made it, without all | do what nobody does,    | FINISHED if an |
    |            | its units or its dataset.json        | wait for others, close  | earlier run's  |
    |            |                                      |                         | plan, or DONE  |
    | COMPACTING | the plan of a compaction, likewise   | finish the copy         | likewise       |
    | FINISHED   | a dataset of an earlier run, not yet | changed: make the next  | UNFINISHED     |
    |            | compared with the source             | plan, or take another's |                |
    |            |                                      | unchanged: leave it     | DONE           |
    | DONE       | a dataset of the source as it is     |                         |                |
    """

    NO_PLAN = enum.auto()
    UNFINISHED = enum.auto()
    COMPACTING = enum.auto()
    FINISHED = enum.auto()
    DONE = enum.auto()


def encode_source(
    folder: Folder,
    inputs: EncodeInputs,
    executor: Executor,
    device: str,
    settings: EncodeSettings,
    recipe_text: str,
    *,
    show_progress: bool = True,
    is_compared: bool = False,
) -> EncodeSummary:
    """Encode everything that isn't encoded yet, as `State` describes. Returns when the dataset is
    finished.

    Args:
        folder: folder of the latent dataset: missing, empty, or from an earlier run.
        executor, device: what runs units, and the device that this process measures on.
        recipe_text, show_progress: the content of recipe.yaml; whether to print the live line.
        is_compared: whether the newest plan is known to match the source.

    Raises:
        FingerprintError, StoreError: the folder contains other latents, or can't be used.
        SourceError: the source is empty, changed during the run, has lost most samples, is mostly
            bad, or can't be reached.
    """
    chain, summary = read_matching_plans(folder, inputs, settings), EncodeSummary()
    to_compare = chain[-1].number if chain and not is_compared else None
    if chain and show_progress:
        warn_of_other_versions(folder, chain[-1].settings)
    while (state := _find_state(folder, chain, to_compare)) is not State.DONE:
        if state is State.NO_PLAN:
            chain = read_or_make_plans(folder, inputs, device, settings)
        elif state is State.FINISHED:
            to_compare = None
            if next_plan(folder, chain[-1], inputs, settings) is not None:
                chain = read_chain(folder)
        else:
            job = make_job(folder, chain[-1], inputs, settings, show_progress)
            write_recipe(folder, recipe_text)  # before any work, but not if the run is refused
            if state is State.COMPACTING:
                finish_compaction(folder, chain[-1])
            else:
                summary += _run_units(job, executor, settings)
                _write_dataset_json(folder, chain, inputs, device, settings)
    write_recipe(folder, recipe_text)
    Claims(folder).sweep()
    return summary


def _find_state(folder: Folder, chain: Sequence[Plan], to_compare: int | None) -> State:
    """Return the state of a folder with these plans. `to_compare` is the number of an earlier run's
    plan.
    """
    if not chain:
        return State.NO_PLAN
    if not is_finished(folder, chain[-1]):
        return State.COMPACTING if chain[-1].settings.compacts else State.UNFINISHED
    return State.FINISHED if chain[-1].number == to_compare else State.DONE


def read_or_make_plans(
    folder: Folder, inputs: EncodeInputs, device: str, settings: EncodeSettings
) -> list[Plan]:
    """Return the folder's plans, oldest first; if there is none, make the first.

    Raises:
        FingerprintError, SourceError, StoreError: as `encode_source`.
    """
    chain = read_matching_plans(folder, inputs, settings)
    if not chain:
        first_plan(folder, inputs, device, settings, all_parts(inputs, settings))
        chain = read_matching_plans(folder, inputs, settings)  # another process may have been first
    return chain


def write_recipe(folder: Folder, text: str) -> None:
    """Write the recipe into the folder, unless it is there already."""
    if not folder.exists(RECIPE) or folder.read(RECIPE) != text.encode():
        folder.replace(RECIPE, text.encode())


def is_finished(folder: Folder, plan: Plan) -> bool:
    """Return whether dataset.json exists, is undamaged, and belongs to this plan or a later one."""
    if not folder.exists(DATASET):
        return False
    try:
        document = read_dataset(folder)
    except DamagedError:
        return False
    return (
        document["fingerprint"] == plan.settings.fingerprint
        and newest_number(document) >= plan.number
    )


def all_parts(inputs: EncodeInputs, settings: EncodeSettings) -> dict[str, str]:
    """Return the names and values of everything that affects the value of a latent."""
    parts = {**inputs.parts, "store": settings.store, "dtype": settings.dtype}
    if settings.on_overflow != "skip":
        parts["on_overflow"] = settings.on_overflow
    return parts


def describe_dataset_json(
    inputs: EncodeInputs, encoder: Encoder, settings: EncodeSettings, threads: int, device: str
) -> Description:
    """Return the content of dataset.json other than plans and units."""
    decoded: dict[str, float | int] = {}
    if settings.dtype == "int8" and settings.preview and not encoder.input.takes_mask:
        with fixed_numerics(threads, device):
            tensors = (
                without_mask(view.tensor) for view in preview_views(inputs, settings.preview)
            )
            rows = [tensor.to(device) for tensor in tensors if tensor is not None]
            psnr = measure_psnr(encoder, rows, inputs.open_decoder(device))
        decoded = {} if psnr is None else {"psnr_db": psnr, "num_samples": len(rows)}
    remarks = {"remarks": [asdict(remark) for remark in inputs.remarks]} if inputs.remarks else {}
    source = {**inputs.described_source, **remarks}
    return Description(
        encoder.layout,
        encoder.normalization,
        settings.store,
        settings.dtype,
        source,
        list(inputs.views),
        decoded,
    )


# ---------------------------------------------------------------- the units


def _write_dataset_json(
    folder: Folder,
    chain: Sequence[Plan],
    inputs: EncodeInputs,
    device: str,
    settings: EncodeSettings,
) -> None:
    """Write index and dataset.json, in one process at a time: a late process must not replace a
    newer dataset.json.
    """
    claims = Claims(folder)
    with claims.heartbeat():
        while not claims.take("finalize"):
            if is_finished(folder, chain[-1]):
                return
            time.sleep(POLL_SECONDS)
        if not is_finished(folder, chain[-1]):
            described = describe_dataset_json(
                inputs, inputs.open_encoder(device), settings, chain[-1].settings.threads, device
            )
            finalize(
                folder,
                chain,
                described,
                functools.partial(check_bad_samples_in_index, folder, inputs, settings.max_bad),
            )


def make_job(
    folder: Folder, plan: Plan, inputs: EncodeInputs, settings: EncodeSettings, show_progress: bool
) -> EncodeJob:
    """Return what workers need to encode the plan's units that are left.

    Raises:
        SourceError: samples of these units were removed, or most of them have changed.
    """
    inputs.remarks  # noqa: B018  # so that an invalid remark fails now, not at the end
    source = inputs.source
    if isinstance(source, StreamSource) and plan.number:
        source = WithRemovedShards(
            source, set(plan.work["key"].to_pylist()) - set(inputs.entries["key"].to_pylist())
        )
    return EncodeJob(
        folder,
        plan,
        source,
        inputs.modality,
        inputs.views,
        inputs.open_encoder,
        settings.store,
        settings.dtype,
        settings.on_bad_sample,
        effective_settings(plan.settings, settings),
        _find_places(folder, plan, inputs),
        show_progress,
        on_overflow=settings.on_overflow,
        open_float32=inputs.open_float32,
    )


def _find_places(folder: Folder, plan: Plan, inputs: EncodeInputs) -> npt.NDArray[np.int64] | None:
    """Return the position in the source of each row of the plan's work, found by key because
    samples may have been added. -1: removed.
    """
    if isinstance(inputs.source, StreamSource):
        return None
    now, planned = inputs.entries, plan.work
    places = find_places(planned["key"], now["key"])
    if (
        plan.number
    ):  # if the source has changed since, removed samples are skipped, and the next plan drops them
        return places
    done = committed_units(folder)
    left = np.isin(
        planned["unit"].to_numpy(), [unit.number for unit in plan.units() if unit.name not in done]
    )
    is_gone = left & (places < 0)
    stamps = now["stamp"].take(pa.array(np.maximum(places, 0)))
    has_changed = left & (places >= 0) & pc.not_equal(stamps, planned["stamp"]).to_numpy()
    num_gone, num_changed = int(is_gone.sum()), int(has_changed.sum())
    # A few changed images were probably repaired; if most have changed, it is another source
    # with the same names.
    if num_gone or 2 * num_changed > int(left.sum()):
        example = planned["key"][
            int(np.flatnonzero(is_gone if num_gone else has_changed)[0])
        ].as_py()
        raise SourceError(
            f"{folder} was started with {plan.num_samples} samples. Of the {int(left.sum())} that"
            f" are left, {num_gone} are no longer in the source and {num_changed} have changed,"
            f" such as {example!r}. Put them back, or choose another output.path"
        )
    return places


def _run_units(job: EncodeJob, executor: Executor, settings: EncodeSettings) -> EncodeSummary:
    """Encode this process's share, then what no other process encodes, then wait for the others."""
    summary, begun, claims = EncodeSummary(), time.monotonic(), Claims(job.folder)
    said_waiting = False
    while True:
        done = committed_units(job.folder)
        left = [unit for unit in job.plan.units() if unit.name not in done]
        if not left or is_finished(
            job.folder, job.plan
        ):  # a compaction may have followed and removed units
            waited = summary.waited_seconds / getattr(executor, "num_processes", 1)
            return replace(summary, seconds=time.monotonic() - begun, waited_seconds=waited)
        unclaimed = claims.find_free([unit.name for unit in left])
        free = [unit for unit in left if unit.name in unclaimed]
        for result in executor.run(free, functools.partial(make_worker, job)):
            summary = add_result(job, summary, result, settings.max_bad)
        if not free:
            holders = claims.holders()
            if holders and not said_waiting:
                print(
                    f"waiting for {', '.join(holders)}, working on the last units", file=sys.stderr
                )
                said_waiting = True
            time.sleep(POLL_SECONDS)


def add_result(
    job: EncodeJob, summary: EncodeSummary, result: UnitResult, max_bad: float
) -> EncodeSummary:
    """Return the summary with one more unit.

    Raises:
        SourceError: too many samples so far are bad.
    """
    summary += EncodeSummary(
        result.num_ok, result.num_skipped, 0.0, result.waited_seconds, result.num_slots
    )
    check_bad_samples_so_far(job, summary.num_skipped, max_bad)
    return summary


# ---------------------------------------------------------------- what is there already


def read_matching_plans(
    folder: Folder, inputs: EncodeInputs, settings: EncodeSettings
) -> list[Plan]:
    """Return the folder's plans after checking that their settings and kind of source are the same;
    none for an empty folder.

    Raises:
        FingerprintError, SourceError, StoreError: settings differ, or the folder isn't a latent
            dataset.
    """
    chain = read_chain(folder)
    if not chain:
        foreign = sorted(folder.top_names() - {"claims", "plans"})
        if foreign:
            raise StoreError(
                f"{folder} contains other files ({', '.join(foreign[:3])}). Choose an empty folder"
                " for the latent dataset"
            )
        return []
    check_parts(folder, chain[-1].settings.parts, all_parts(inputs, settings), inputs.defaults)
    streams = chain[-1].settings.stream
    if streams != isinstance(inputs.source, StreamSource):
        then, now = ("a stream", "single samples") if streams else ("single samples", "a stream")
        raise SourceError(
            f"{folder} was made from {then}, but the source now has {now}. Choose another"
            " output.path, or restore the source's options"
        )
    return chain

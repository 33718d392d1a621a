"""Makes the plan of a run: the first plan of a source, or the next one if the source has changed.
All processes agree on it.
"""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from latentkit._version import __version__
from latentkit.contracts import (
    Encoder,
    Entry,
    Modality,
    Prepared,
    Remark,
    Sample,
    Source,
    StreamSource,
)
from latentkit.encoding.auto_sizes import Measured, choose_unit_size, measure_batches
from latentkit.encoding.source_changes import Changes, compare_samples, compare_shards
from latentkit.errors import RecipeError, SampleError, SourceError
from latentkit.preparing.media_retry import with_retries
from latentkit.preparing.sample_trier import SampleTrier, prepared_by
from latentkit.preparing.stack import num_bytes_of
from latentkit.preparing.unit_samples import read_shard
from latentkit.runtime.bad_samples import refuse_all
from latentkit.runtime.cores import num_cores
from latentkit.runtime.device import can_compile, kind_of
from latentkit.runtime.memory import available_bytes, describe_bytes
from latentkit.runtime.numerics import fixed_numerics
from latentkit.runtime.source_remarks import read_remarks
from latentkit.store.claims import Claims
from latentkit.store.contents import column_filling, describe_fillings
from latentkit.store.dataset_json import read_dataset, read_index, refuse_missing_units
from latentkit.store.folder import Folder
from latentkit.store.plan import Plan, PlanSettings, list_entries, newest_plan, plan_of, write_plan

POLL_SECONDS = 0.5
MAX_PROBED = 1000

COMPILE_FROM_SECONDS = 600.0
"""With `compile: auto`, encoding on a GPU is compiled if it is estimated to take this long."""

LIBRARIES = ("torch", "diffusers", "pillow")


@dataclass(frozen=True)
class EncodeSettings:
    """The settings of an encode recipe. "auto" is measured when the first plan is made."""

    store: Literal["moments", "mean"] = "moments"
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    unit_size: int | Literal["auto"] = "auto"
    batch_size: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    on_bad_sample: Literal["skip", "fail"] = "skip"
    max_bad: float = 0.05
    on_overflow: Literal["skip", "retry-fp32"] = "skip"
    preview: int = 0
    prune: bool = False
    retry_skipped: bool = False


@dataclass(frozen=True)
class EncodeInputs:
    """The source, modality and encoder of a run.

    Args:
        views: names of the views that the modality makes of each sample.
        open_encoder: takes a device and returns the encoder; the same one for the same device.
        parts: names and values of everything that affects the value of a latent, except what
            `settings` adds.
        described_source: dataset.json's description of the source.
        open_float32: takes a device and returns the same encoder computing in float32, which may be
            the same object; None if there is none.
        defaults: names and values of options that `parts` leaves out at their default, for
            messages.
    """

    source: Source | StreamSource
    modality: Modality
    views: Sequence[str]
    open_encoder: Callable[[str], Encoder]
    parts: Mapping[str, str]
    described_source: Mapping[str, Any] = field(default_factory=dict)
    open_float32: Callable[[str], Encoder] | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)

    def open_decoder(self, device: str) -> Encoder:
        """Return the encoder for decoding: in float32 if possible, because half precision may
        overflow.
        """
        return (self.open_float32 or self.open_encoder)(device)

    @functools.cached_property
    def entries(self) -> pa.Table:
        """Return what the source has now: key, stamp, attributes; for a stream, its shards.

        Raises:
            SourceError: the source is empty, or a key occurs twice.
        """
        if isinstance(self.source, StreamSource):
            return list_entries(Entry(shard.name, shard.stamp) for shard in self.source.shards())
        return list_entries(self.source.entries())

    @functools.cached_property
    def remarks(self) -> list[Remark]:
        """Return what the source found but doesn't use; for a stream, what is known before reading
        it.

        Raises:
            PluginError: a remark is invalid.
            SourceError: as `entries`.
        """
        if not isinstance(self.source, StreamSource):
            self.entries  # noqa: B018  # reads captions, which would otherwise be read twice
        return read_remarks(self.source)


def first_plan(
    folder: Folder,
    inputs: EncodeInputs,
    device: str,
    settings: EncodeSettings,
    parts: Mapping[str, str],
) -> Plan:
    """Return the plan of the first process to arrive. The others wait for it.

    A run that can't make one leaves nothing behind.
    """
    try:
        plan = _commit_first(folder, -1, lambda: _make_first(inputs, device, settings, parts))
    except BaseException:
        folder.discard_if_empty()
        raise
    if plan is None:
        raise AssertionError("the first plan is always made")
    return plan


def next_plan(
    folder: Folder, newest: Plan, inputs: EncodeInputs, settings: EncodeSettings
) -> Plan | None:
    """Return the plan that follows `newest`, whose dataset is finished, or None if nothing has
    changed.

    Raises:
        SourceError: more than half of the samples were removed, and `prune` is not set.
    """
    return _commit_first(
        folder, newest.number, lambda: _plan_changes(folder, newest, inputs, settings)
    )


def find_changes(
    folder: Folder, newest: Plan, inputs: EncodeInputs, retry_skipped: bool
) -> Changes:
    """Return how the source differs from the finished dataset of the plan `newest`.

    Raises:
        StoreError: the dataset lacks a unit or is damaged.
    """
    document = read_dataset(folder)
    refuse_missing_units(folder, document)
    index = read_index(
        folder, document, ["key", "stamp", "content", "status", "attributes", "unit"]
    )
    if isinstance(inputs.source, StreamSource):
        skipped = index.filter(pc.equal(index["status"], "skipped"))["unit"].combine_chunks()
        return compare_shards(newest, inputs.entries, skipped if retry_skipped else skipped[:0])
    # random crops depend on the sample's key, so a renamed sample would have other latents
    find_renamed = "modality.seed" not in newest.settings.parts
    return compare_samples(
        index,
        inputs.entries,
        functools.partial(_hash_media, inputs.source),
        retry_skipped,
        find_renamed,
    )


def _commit_first(folder: Folder, known: int, make: Callable[[], Plan | None]) -> Plan | None:
    """Return the committed plan with a number above `known`: this process's, or that of another
    process that was first.
    """
    claims = Claims(folder)
    with claims.heartbeat():
        while True:
            ours = claims.take("plan")
            newest = newest_plan(folder)
            if newest is not None and newest.number > known:
                return newest
            if ours:
                plan = make()
                if plan is None:
                    return None
                write_plan(folder, plan)
            else:
                time.sleep(POLL_SECONDS)


# ---------------------------------------------------------------- the next plan


def _plan_changes(
    folder: Folder, newest: Plan, inputs: EncodeInputs, settings: EncodeSettings
) -> Plan | None:
    """Return the plan of what has changed, or None."""
    changes = find_changes(folder, newest, inputs, settings.retry_skipped)
    if not changes.counts:
        return None
    refuse_large_removal(folder, changes, settings.prune)
    print(describe_changes(folder, changes), file=sys.stderr, flush=True)
    unit_size = newest.settings.unit_size if settings.unit_size == "auto" else settings.unit_size
    planned = replace(
        effective_settings(newest.settings, settings),
        unit_size=unit_size,
        versions=library_versions(),
        compacts=False,
    )
    return plan_of(newest.number + 1, inputs.entries, planned, changes.previous)


def refuse_large_removal(folder: Folder, changes: Changes, prune: bool) -> None:
    """Refuse to drop most of a dataset, which is probably a mistake.

    Raises:
        SourceError: more than half of the samples were removed, and `prune` is not set.
    """
    if 2 * changes.counts.removed > changes.num_before and not prune:
        gone = (
            f"{changes.counts.removed} of the {changes.num_before} samples of {folder} are no"
            " longer in the source"
        )
        advice = (
            "Put them back, or leave them out with --prune, an option of latentkit run. For another"
            " source choose another output.path"
        )
        raise SourceError(f"{gone}. {advice}")


def describe_entries(inputs: EncodeInputs) -> list[str]:
    """Return one line per attribute: how many samples have it. A stream doesn't know before it is
    read.
    """
    if isinstance(inputs.source, StreamSource):
        return []
    return describe_fillings(
        column_filling(inputs.entries["attributes"]), inputs.entries.num_rows, "sample"
    )


def describe_changes(folder: Folder, changes: Changes) -> str:
    """Return the changes and the work in one line."""
    return (
        f"{folder}: the source has changed: {changes.counts}; {changes.counts.num_to_encode} to"
        " encode"
    )


def _hash_media(source: Source, positions: Sequence[int]) -> list[str | None]:
    """Return the hash of the media of samples at these positions; None for one that can't be
    read.
    """

    def content(position: int) -> str | None:
        try:
            return with_retries(lambda: source[position].content(), f"sample {position}")
        except SampleError:
            return None

    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(content, positions))


def effective_settings(planned: PlanSettings, settings: EncodeSettings) -> PlanSettings:
    """Return the plan's settings, with those that the recipe sets explicitly. They apply to the
    units left, and each unit records them.
    """
    given = {
        name: value
        for name in ("batch_size", "threads", "compile")
        if (value := getattr(settings, name)) != "auto"
    }
    return replace(planned, **given)


def library_versions() -> dict[str, str]:
    """Return the versions of libraries that may change the last bits of a latent, as plans record
    them.
    """
    # The package's own stands under its import name, whatever its distribution is called.
    return {"latentkit": __version__, **{name: metadata.version(name) for name in LIBRARIES}}


def warn_of_other_versions(folder: Folder, planned: PlanSettings) -> None:
    """Warn if libraries have changed. They aren't part of the fingerprint, but may change the last
    bits of a latent.
    """
    now = library_versions()
    then = planned.versions
    different = [
        f"{name} {then[name]} then, {now[name]} now"
        for name in now
        if then.get(name, now[name]) != now[name]
    ]
    if different:
        remark = (
            f"{folder} was started with other library versions; latents may differ in the last bits"
        )
        print(f"{remark}: {'; '.join(different)}", file=sys.stderr)


# ---------------------------------------------------------------- the first plan


def _make_first(
    inputs: EncodeInputs, device: str, settings: EncodeSettings, parts: Mapping[str, str]
) -> Plan:
    """Return the first plan of a source."""
    stream = isinstance(inputs.source, StreamSource)
    threads = num_cores() if settings.threads == "auto" else settings.threads
    num_entries, num_views = inputs.entries.num_rows, len(inputs.views)
    measured = _measure(inputs, device, settings, threads)
    unit_size = settings.unit_size
    if unit_size == "auto":
        unit_size = 1 if stream else choose_unit_size(num_entries, num_views, measured)
    compiled = settings.compile
    if compiled == "auto":
        is_long = num_entries * num_views * measured.seconds_per_row > COMPILE_FROM_SECONDS
        compiled = is_long and kind_of(device) != "cpu" and can_compile(device)
    planned = PlanSettings(
        parts, measured.batch_size, unit_size, threads, compiled, library_versions(), stream
    )
    return plan_of(0, inputs.entries, planned)


def _measure(inputs: EncodeInputs, device: str, settings: EncodeSettings, threads: int) -> Measured:
    """Return batch size and cost per row. Nothing is run if the recipe sets everything."""
    prepared = _first_good(inputs)
    if settings.batch_size != "auto":
        _refuse_batch_beyond_memory(prepared, settings.batch_size)
    if (
        settings.batch_size != "auto"
        and settings.unit_size != "auto"
        and settings.compile != "auto"
    ):
        return Measured(settings.batch_size, 0.0, 0)
    with fixed_numerics(threads, device):
        batch_size = None if settings.batch_size == "auto" else settings.batch_size
        is_int8 = settings.dtype == "int8"  # which is made of float32, a quarter of its size
        dtype = torch.float32 if is_int8 else getattr(torch, settings.dtype)
        num_rows = (
            None
            if isinstance(inputs.source, StreamSource)
            else inputs.entries.num_rows * len(inputs.views)
        )
        measured = measure_batches(
            inputs.open_encoder(device),
            prepared,
            device,
            settings.store,
            dtype,
            batch_size,
            num_rows,
        )
        return (
            replace(measured, bytes_per_row=-(-measured.bytes_per_row // 4))
            if is_int8
            else measured
        )


def _refuse_batch_beyond_memory(prepared: Prepared, batch_size: int) -> None:
    """Refuse a batch whose input alone doesn't fit into memory, because the kernel would kill the
    process without a message.
    """
    row_bytes = num_bytes_of(prepared.tensor)
    if (needed := row_bytes * batch_size) > (there := available_bytes()):
        fits = max(1, there // (4 * row_bytes))
        what = f"{batch_size} rows of {prepared.bucket} are {describe_bytes(needed)}"
        raise RecipeError(
            f"batch_size: {what}, but only {describe_bytes(there)} of memory are free. Set"
            f" batch_size to {fits} or less, or to auto"
        )


def preview_views(inputs: EncodeInputs, count: int) -> list[Prepared]:
    """Return the first view of up to `count` samples, distributed over the source (for a stream:
    its first ones). Bad samples are left out.
    """
    source = inputs.source
    samples = (
        itertools.islice(_first_samples(source), count)
        if isinstance(source, StreamSource)
        else np.unique(np.linspace(0, len(source) - 1, count).round().astype(int)).tolist()
    )
    trier, prepare = SampleTrier(source), prepared_by(inputs.modality, most=1)
    tried = (trier.try_sample(sample, prepare) for sample in samples)
    return [view for one in tried for view in one.views]


def _first_good(inputs: EncodeInputs) -> Prepared:
    """Return a view of the first usable sample."""
    trier, prepare, reasons = SampleTrier(inputs.source), prepared_by(inputs.modality, most=1), {}
    for sample in _first_samples(inputs.source):
        tried = trier.try_sample(sample, prepare)
        if not tried.reason:
            return tried.views[0]
        reasons[tried.key] = tried.reason
    if not reasons:
        raise SourceError("the source has no samples")
    refuse_all(reasons, f"first {len(reasons)} samples")


def _first_samples(source: Source | StreamSource) -> Iterator[Sample | int]:
    """Yield functions that fetch the first samples."""
    if isinstance(source, StreamSource):
        samples = (sample for shard in source.shards() for sample in read_shard(source, shard))
        return itertools.islice(samples, MAX_PROBED)
    return iter(range(min(len(source), MAX_PROBED)))

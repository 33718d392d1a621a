"""Measures reconstructions and latents: `evaluate_model` on a source, `evaluate_latents` on a
latent dataset.

There are no side effects: weights, train or eval mode and torch's random numbers are unchanged.
Each sample's draws depend only on the seed and its position, not on the batch size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from latentkit.contracts import (
    Decodes,
    Figure,
    InputSpec,
    LatentLayout,
    Measured,
    Metric,
    MetricBatch,
    MetricSetting,
    Modality,
    Moments,
    Reconstruction,
    Source,
    StreamSource,
)
from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.contracts.plugin_specs import Better, Need
from latentkit.errors import EncoderError, RecipeError
from latentkit.evaluation.batches import (
    Row,
    batch_rows,
    count_samples,
    read_rows,
    tensors_of,
)
from latentkit.evaluation.images import Gallery
from latentkit.metrics.metric import POSTERIOR_STREAM, Floats, draw, noise_for
from latentkit.reading.dataset import LatentDataset
from latentkit.runtime.bad_samples import BadSamplePolicy
from latentkit.runtime.device import restored_random_state
from latentkit.runtime.numerics import fixed_numerics
from latentkit.runtime.progress import Progress

Posterior = Literal["mean", "sample"]


@dataclass(frozen=True)
class NamedMetric:
    """A metric of an evaluation.

    Args:
        name: prefix of its results; unique in the evaluation.
        metric: reset with each evaluation.
        needs, better: see `MetricSpec`.
        use: its name in recipes, by which a modality knows it.
    """

    name: str
    metric: Metric
    needs: Sequence[Need] = ()
    use: str = ""
    better: Better = ""


@dataclass(frozen=True)
class EvaluateSettings:
    """The numbers of an evaluation; the recipe's keys of the same names.

    Args:
        posterior: what is decoded and measured of each posterior: its mean, or a draw.
        batch_size: samples that are encoded at once.
        seed: seed of all draws.
        device: torch device of inputs and metrics.
        bad: what is done with bad samples.
        num_images: number of samples spread over the source whose images are kept, and as many of
            the worst.
        show_always: decode the samples spread over the source even if no metric needs it.
        keep_tensors: keep the samples spread over the source also as tensors, for a modality to
            render.
    """

    posterior: Posterior = "mean"
    batch_size: int = 8
    seed: int = 0
    device: str = "cpu"
    bad: BadSamplePolicy = field(default_factory=BadSamplePolicy)
    num_images: int = 0
    show_always: bool = False
    keep_tensors: bool = False
    show_progress: bool = False


@dataclass(frozen=True)
class Evaluation:
    """Results of an evaluation.

    Args:
        figures: by name, such as "psnr" and "kl_bits_per_dim".
        per_sample: with the same names, a number for each good row.
        tables: other results of each metric, by its name.
        rows: all rows in the source's order, without their tensors; bad ones have a reason.
        warnings: why figures may mislead.
        gallery: images, if there are any.
        posterior: what was decoded.
    """

    figures: Mapping[str, Figure]
    per_sample: Mapping[str, Floats]
    tables: Mapping[str, Mapping[str, Any]]
    rows: Sequence[Row]
    warnings: Sequence[str] = ()
    gallery: Gallery = field(default_factory=lambda: Gallery(0, (-1.0, 1.0)))
    posterior: str = "mean"

    @property
    def num_samples(self) -> int:
        """Return the number of measured rows."""
        return sum(not row.reason for row in self.rows)

    def values(self) -> dict[str, float]:
        """Return only the numbers of the figures, by name."""
        return {name: figure.value for name, figure in self.figures.items()}


# ---------------------------------------------------------------- models


class Codec(Protocol):
    """The evaluated model: an `Encoder` that `Decodes`, or a `Trainable`'s module through
    `ModuleCodec`.
    """

    @property
    def input(self) -> InputSpec: ...

    @property
    def layout(self) -> LatentLayout: ...

    def encode(self, batch: Tensor, /) -> dict[str, Tensor]: ...

    def decode(self, latents: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class ModuleCodec:
    """A `Trainable`'s current module, in the middle of a training run.

    Args:
        module: its forward returns a `Reconstruction`, and it has a method `decode`.
    """

    module: nn.Module
    input: InputSpec
    layout: LatentLayout

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return raw "mean" and "logvar", or "latent"."""
        found: Reconstruction = self.module(batch)
        if found.moments is None:
            return {"latent": found.latents}
        return {"mean": found.moments.mean, "logvar": found.moments.logvar}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents.

        Raises:
            EncoderError: the module has no method `decode`.
        """
        decode = getattr(self.module, "decode", None)
        if decode is None:
            raise EncoderError(
                "this model can't be evaluated while it trains: its module has no method decode"
            )
        found: Tensor = decode(latents)
        return found


# ---------------------------------------------------------------- the two evaluations


def evaluate_model(
    model: Codec,
    source: Source | StreamSource,
    modality: Modality,
    metrics: Sequence[NamedMetric],
    settings: EvaluateSettings,
) -> Evaluation:
    """Measure reconstructions of every view of every sample, and their latents.

    Raises:
        RecipeError: this model or modality doesn't support a metric.
        SourceError: no sample is usable, too many are bad, or a metric can't be measured on them.
        EncoderError: the model can't decode, or returns another shape than its input's.
    """
    check_metrics(metrics, model.layout, settings.posterior, isinstance(model, Decodes), modality)
    if model.layout.kind != "gaussian":
        decoded_from = "the latents"
    else:
        decoded_from = (
            "the posterior's mean" if settings.posterior == "mean" else "a draw from the posterior"
        )
    num_samples = count_samples(source)
    setting = MetricSetting(model.input.range, model.layout, decoded_from, num_samples)
    for named in metrics:
        named.metric.start(setting)
    gallery = Gallery(settings.num_images, model.input.range, num_samples, settings.keep_tensors)
    decodes = any("decoder" in named.needs for named in metrics)
    rows: list[Row] = []
    good: list[Row] = []
    begun: set[str] = set()
    progress = Progress(
        num_samples or 0, "samples", settings.show_progress and num_samples is not None
    )
    with (
        contextlib.closing(read_rows(source, modality, settings.bad)) as found,
        _preserving_state(model, settings),
        progress,
    ):
        for batch in batch_rows(_record_rows(found, rows), settings.batch_size):
            is_shown = settings.show_always and gallery.wants(batch)
            seen = _pass(model, batch, settings, decodes or is_shown)
            for named in metrics:
                named.metric.add(seen)
            if decodes or is_shown:
                gallery.add(batch, *seen.pair())
            good += [_without_tensor(row) for row in batch]
            progress.update(len({row.key for row in batch} - begun))
            begun = {row.key for row in batch}  # their other views may come with the next batch
    return _finish(metrics, rows, good, settings, gallery)


def evaluate_latents(
    dataset: LatentDataset, metrics: Sequence[NamedMetric], settings: EvaluateSettings
) -> Evaluation:
    """Measure the latents of a dataset, as raw latents. No encoder is needed.

    Args:
        dataset: opened with posterior "moments" if it has moments, else "mean".

    Raises:
        RecipeError: these latents don't support a metric.
        StoreError: a unit is missing or damaged.
    """
    layout = dataset.layout
    check_metrics(metrics, layout, settings.posterior, False, None, has_moments=dataset.has_moments)
    words = {"mean": "the posterior's mean", "sample": "a draw from the posterior"}
    setting = MetricSetting(
        (-1.0, 1.0),
        layout,
        words[settings.posterior] if dataset.has_moments else "latents as stored",
        len(dataset),
    )
    for named in metrics:
        named.metric.start(setting)
    rows: list[Row] = []
    with torch.no_grad(), Progress(len(dataset), "latents", settings.show_progress) as progress:
        for batch in dataset.batches(settings.batch_size, rank=0, world_size=1):
            first = len(rows)
            rows += [
                Row(first + number, key, view)
                for number, (key, view) in enumerate(zip(batch["key"], batch["view"], strict=True))
            ]
            positions = range(first, len(rows))
            if dataset.has_moments:
                mean, logvar = batch["moments"].to(settings.device, torch.float32).chunk(2, dim=1)
                seen = _with_moments(mean, logvar, positions, settings)
            else:
                raw = dataset.normalization.invert(
                    batch["latent"].to(settings.device, torch.float32), layout.axes
                )
                seen = MetricBatch(positions, raw, None, seed=settings.seed)
            for named in metrics:
                named.metric.add(seen)
            progress.update(len(positions))
    return _finish(metrics, rows, rows, settings, Gallery(0, (-1.0, 1.0)))


def check_metrics(
    metrics: Sequence[NamedMetric],
    layout: LatentLayout,
    posterior: Posterior,
    can_decode: bool,
    modality: Modality | None,
    has_moments: bool = True,
) -> None:
    """Check that every metric can be computed.

    Args:
        modality: None for latents without their source.
        has_moments: whether mean and logvar are known, if the layout has them.

    Raises:
        RecipeError: a metric can't be computed; the message has one line for each.
    """
    has_posterior = layout.kind == "gaussian" and has_moments
    problems = []
    if posterior == "sample" and not has_posterior:
        problems.append(
            "posterior: sample needs a posterior, but there is none; set posterior: mean"
        )
    for named in metrics:
        if "decoder" in named.needs and modality is None:
            problems.append(
                f"metric {named.name!r} compares inputs with their reconstructions, but latents"
                " alone have none"
            )
        elif "decoder" in named.needs and not can_decode:
            problems.append(
                f"metric {named.name!r} needs a model that can decode, but this one can't"
            )
        elif "posterior" in named.needs and not has_posterior:
            problems.append(
                f"metric {named.name!r} needs a posterior, but these latents are {layout.kind},"
                " without mean and logvar"
            )
        elif "continuous" in named.needs and layout.kind == "quantised":
            problems.append(
                f"metric {named.name!r} needs latents that are numbers, but these are indices"
            )
        elif (
            "modality" in named.needs and modality is not None and named.use not in modality.metrics
        ):
            known = ", ".join(modality.metrics) or "none"
            problems.append(
                f"metric {named.name!r} doesn't apply to this modality, whose metrics are: {known}"
            )
    if problems:
        raise RecipeError(
            "\n".join(
                f"{problem}; leave it out" if problem.startswith("metric") else problem
                for problem in problems
            )
        )


# ---------------------------------------------------------------- one batch


def _pass(
    model: Codec, rows: Sequence[Row], settings: EvaluateSettings, decodes: bool
) -> MetricBatch:
    """Encode a batch of rows, and decode the latents if a metric needs it."""
    inputs = torch.stack(tensors_of(rows)).to(settings.device, torch.float32)
    positions = [row.position for row in rows]
    found = model.encode(inputs)
    if "mean" in found:
        seen = _with_moments(
            found["mean"].to(settings.device).float(),
            found["logvar"].to(settings.device).float(),
            positions,
            settings,
        )
    else:
        latents = next(iter(found.values())).to(settings.device)
        seen = MetricBatch(positions, latents if "indices" in found else latents.float(), None)

    def decode(latents: Tensor) -> Tensor:
        return model.decode(latents).to(settings.device).float()

    output = decode(seen.latents) if decodes else None
    if output is not None and output.shape != inputs.shape:
        raise EncoderError(
            f"the model's reconstruction has the shape {tuple(output.shape)}, but its input has"
            f" {tuple(inputs.shape)}; the two must be equal"
        )
    return MetricBatch(
        positions, seen.latents, seen.moments, inputs, output, seen.is_draw, settings.seed, decode
    )


def _with_moments(
    mean: Tensor, logvar: Tensor, positions: Sequence[int], settings: EvaluateSettings
) -> MetricBatch:
    """Return the posterior's mean, or the draw that belongs to each position. logvar is clamped to
    [-30, 20], as everywhere.
    """
    moments = Moments(mean, logvar.clamp(*LOGVAR_RANGE))
    batch = MetricBatch(positions, mean, moments, seed=settings.seed)
    if settings.posterior == "mean":
        return batch
    latents = draw(moments, noise_for(batch, POSTERIOR_STREAM).take(1)[0])
    return MetricBatch(positions, latents, moments, is_draw=True, seed=settings.seed)


@contextlib.contextmanager
def _preserving_state(model: Codec, settings: EvaluateSettings) -> Iterator[None]:
    """Switch off gradients, use eval mode, true float32 and separate random numbers, and restore
    everything at the end.
    """
    module = getattr(model, "module", None) if isinstance(model, ModuleCodec) else None
    modes = [(part, part.training) for part in module.modules()] if module is not None else []
    numerics = fixed_numerics(torch.get_num_threads(), settings.device)
    with torch.no_grad(), numerics, restored_random_state(settings.device):
        torch.manual_seed(settings.seed)
        if module is not None:
            module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training


# ---------------------------------------------------------------- the end


def _record_rows(rows: Iterator[Row], record: list[Row]) -> Iterator[Row]:
    """Yield the good rows, and add all of them to `record` without their tensors."""
    for row in rows:
        record.append(_without_tensor(row))
        if not row.reason:
            yield row


def _without_tensor(row: Row) -> Row:
    return Row(row.position, row.key, row.view, row.bucket, None, row.reason)


def _finish(
    metrics: Sequence[NamedMetric],
    rows: Sequence[Row],
    good: Sequence[Row],
    settings: EvaluateSettings,
    gallery: Gallery,
) -> Evaluation:
    """Return all results, with numbers per sample in the order of the rows."""
    figures: dict[str, Figure] = {}
    per_sample: dict[str, Floats] = {}
    tables: dict[str, Mapping[str, Any]] = {}
    warnings: list[str] = []
    order = sorted(range(len(good)), key=lambda number: good[number].position)
    for named in metrics:
        found: Measured = named.metric.finish()
        figures |= {_full_name(named.name, part): figure for part, figure in found.figures.items()}
        per_sample |= {
            _full_name(named.name, part): values[order] for part, values in found.per_sample.items()
        }
        warnings += found.warnings
        if found.tables:
            tables[named.name] = found.tables
    if gallery.num_broken:
        broken = f"{gallery.num_broken} of {len(good)} reconstructions are not finite (shown black)"
        warnings.append(f"{broken}; half precision may overflow: set the model's dtype to float32")
    return Evaluation(figures, per_sample, tables, rows, warnings, gallery, settings.posterior)


def _full_name(name: str, part: str) -> str:
    return f"{name}_{part}" if part else name

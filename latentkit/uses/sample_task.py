"""The sample task: new items from a latent dataset, decoded, with the nearest item of the dataset
beside each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import TaskContext
from latentkit.errors import StoreError
from latentkit.recipe.schema import dump_recipe, resolve
from latentkit.uses.recipes import SampleRecipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from latentkit.uses.decoded_media import MediaDecoder
    from latentkit.uses.fit_sampler import FittedSampler, PriorGap
    from latentkit.uses.raw_rows import RawRows
    from latentkit.uses.samplers import Sampler

SAMPLES, SUMMARY, METADATA, GRID = "samples", "sample.json", "metadata.jsonl", "grid"
GRID_COLUMNS = 8
GRID_ITEMS = 64
DRAWN_VALUES = 2**24
"""Values of the latents that are drawn and searched for at once: 64 MiB in float32."""


@dataclass(frozen=True)
class SampleResult:
    """Result of a sample task.

    Args:
        folder: holds samples/ (media files and metadata.jsonl), grid.png (or as the modality
            renders), sample.json and recipe.yaml. None in all processes of a launch but the first.
        gap: between the dataset and the prior.
        fitted: the sampler, and how the others fit.
        median_distance: of new items to the nearest item of the dataset.
        reference_distance: the same of items of the dataset to another one.
    """

    folder: Path | None
    gap: PriorGap
    fitted: FittedSampler
    count: int
    median_distance: float
    reference_distance: float


@dataclass(frozen=True)
class _Drawing:
    """All that a run has opened and fitted.

    Args:
        samplers: by value of the attribute `by`; one under None without it.
    """

    rows: RawRows
    media: MediaDecoder
    gap: PriorGap
    fitted: FittedSampler
    samplers: Mapping[Any, Sampler]


def run_sampling(recipe: SampleRecipe, context: TaskContext) -> SampleResult | None:
    """Draw, decode and write new items. What an earlier run has written there is replaced.

    Only the first process of a launch samples; the others return None.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.uses.decoded_media import claim_local_folder, write_json
    from latentkit.uses.nearest_rows import reference_distances

    if not context.is_first_process:
        return None
    drawing = _prepare(recipe, choose_device(context.device), context.say)
    owned = [SAMPLES, SUMMARY, GRID + drawing.media.suffix]
    folder = claim_local_folder(
        recipe.output.path, recipe.task, dump_recipe(resolve(recipe)), owned
    )
    distances = _write_samples(drawing, recipe, folder)
    reference = float(reference_distances(drawing.rows, _deviations(drawing)).median())
    median = float(sorted(distances)[len(distances) // 2])
    result = SampleResult(folder, drawing.gap, drawing.fitted, recipe.count, median, reference)
    write_json(folder / SUMMARY, _summarize(result, recipe))
    return result


def open_sampling(recipe: SampleRecipe, remote: Collection[str]) -> None:
    """Open the latent dataset and its decoder on the CPU, and write nothing."""
    rows, _ = _open(recipe, "cpu")
    if recipe.by is not None:
        rows.split_by(recipe.by)


def report_sampling(result: SampleResult | None) -> str:
    """Return what a sample task says at its end."""
    if result is None:
        return "sampled by the first process"
    return "\n".join(
        [
            f"{result.folder}: {result.count} new items",
            f"  {result.gap}",
            f"  {result.fitted}",
            f"  distance to the nearest item of the dataset, in standard deviations per value:"
            f" {result.median_distance:.3g}; from one such item to the next:"
            f" {result.reference_distance:.3g} (medians)",
        ]
    )


def _open(recipe: SampleRecipe, device: str) -> tuple[RawRows, MediaDecoder]:
    from latentkit.reading.dataset import open_dataset
    from latentkit.store.dataset_json import read_dataset
    from latentkit.uses.decoded_media import open_media_decoder
    from latentkit.uses.raw_rows import open_rows

    columns = [] if recipe.by is None else [recipe.by]
    try:
        dataset = open_dataset(recipe.latents, columns=columns)
    except ValueError as error:
        raise StoreError(f"{recipe.origin}: by: {error}") from error
    rows = open_rows(dataset, recipe.posterior, recipe.seed)
    return rows, open_media_decoder(dataset, read_dataset(dataset.folder)["parts"], device)


def _prepare(recipe: SampleRecipe, device: str, say: Callable[[str], None]) -> _Drawing:
    """Open what the recipe names, state the gap to the prior, and fit samplers."""
    from latentkit.uses.fit_sampler import fit_sampler, measure_gap, refit

    rows, media = _open(recipe, device)
    classes = {None: rows} if recipe.by is None else rows.split_by(recipe.by)
    gap = measure_gap(rows)
    say(str(gap))
    fitted = fit_sampler(rows, recipe)
    say(str(fitted))
    samplers = (
        {None: fitted.sampler}
        if recipe.by is None
        else {value: refit(fitted.sampler, part, recipe) for value, part in classes.items()}
    )
    return _Drawing(rows, media, gap, fitted, samplers)


def _write_samples(drawing: _Drawing, recipe: SampleRecipe, folder: Path) -> list[float]:
    """Write media files, their metadata and the grid; return each item's distance to the nearest.

    The files are a folder that `datasets.load_dataset` and the source `folder` read.
    """
    (folder / SAMPLES).mkdir()
    shown: list[Tensor] = []
    distances = []
    with (folder / SAMPLES / METADATA).open("w", encoding="utf-8") as lines:
        for number, (decoded, about) in enumerate(_draw_all(drawing, recipe)):
            name = f"{number:06d}{drawing.media.suffix}"
            drawing.media.modality.render([[decoded]], folder / SAMPLES / name)
            lines.write(json.dumps({"file_name": name, **about}, ensure_ascii=False) + "\n")
            distances.append(about["nearest_distance"])
            if len(shown) < GRID_ITEMS:
                shown.append(decoded)
    rows = [shown[start : start + GRID_COLUMNS] for start in range(0, len(shown), GRID_COLUMNS)]
    drawing.media.modality.render(rows, folder / (GRID + drawing.media.suffix))
    return distances


def _draw_all(
    drawing: _Drawing, recipe: SampleRecipe
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yield each new item, decoded, and what is known of it."""
    from latentkit.uses.nearest_rows import find_nearest

    for value, latents in _draw_latents(drawing, recipe):
        nearest = find_nearest(latents, drawing.rows, _deviations(drawing), None)
        decoded = drawing.media.decode(latents, recipe.batch_size)
        known = {
            "sampler": drawing.fitted.sampler.name,
            "seed": recipe.seed,
            **({} if recipe.by is None else {recipe.by: value}),
        }
        for one, key, distance in zip(
            decoded, nearest.keys, nearest.distances.tolist(), strict=True
        ):
            yield one, {**known, "nearest_key": key, "nearest_distance": distance}


def _draw_latents(drawing: _Drawing, recipe: SampleRecipe) -> Iterator[tuple[Any, Tensor]]:
    """Yield new raw latents (N, C, ...), some at a time, each with its value of the attribute."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    most = max(1, DRAWN_VALUES // math.prod(drawing.rows.shape))
    share, more = divmod(recipe.count, len(drawing.samplers))
    for number, (value, sampler) in enumerate(drawing.samplers.items()):
        left = share + (number < more)
        while left:
            yield value, sampler.draw(min(left, most), generator)
            left -= min(left, most)


def _deviations(drawing: _Drawing) -> torch.Tensor:
    import torch

    return torch.tensor(drawing.gap.std, dtype=torch.float64)


def _summarize(result: SampleResult, recipe: SampleRecipe) -> dict[str, Any]:
    """Return the content of sample.json."""
    return {
        "latents": recipe.latents,
        "count": result.count,
        "seed": recipe.seed,
        "by": recipe.by,
        "prior_gap": result.gap.as_json(),
        "sampler": result.fitted.sampler.name,
        "held_out_log_density_nats_per_value": dict(result.fitted.log_densities),
        "samplers_left_out": dict(result.fitted.left_out),
        "median_distance_to_nearest_item": result.median_distance,
        "median_distance_between_nearest_items": result.reference_distance,
    }

"""The interpolate task: the way from one item of a latent dataset to another, decoded, with how
even its steps are and where it leaves the data.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import TaskContext
from latentkit.recipe.schema import dump_recipe, resolve
from latentkit.uses.recipes import InterpolateRecipe

if TYPE_CHECKING:
    from torch import Tensor

    from latentkit.uses.decoded_media import MediaDecoder
    from latentkit.uses.raw_rows import RawRows

SAMPLES, SUMMARY, METADATA, STRIP = "samples", "interpolate.json", "metadata.jsonl", "strip"
OUTSIDE_QUANTILE = 0.95


@dataclass(frozen=True)
class InterpolateResult:
    """Result of an interpolate task.

    Args:
        folder: holds samples/ (media files and metadata.jsonl), strip.png (or as the modality
            renders), interpolate.json and recipe.yaml.
        points: of all pieces, each with `from` and `to` (keys), `position` from 0 to 1, the key and
            distance of the nearest item, and whether it lies outside the data.
        step_sizes: root mean square difference of each decoded point to the next, by piece.
        outside_distance: distance to the nearest item above which a point lies outside: 95 % of the
            items themselves are nearer to another item.
    """

    folder: Path
    points: Sequence[dict[str, Any]]
    step_sizes: Sequence[Sequence[float]]
    outside_distance: float

    @property
    def unevenness(self) -> float:
        """Return the largest step over the mean step: 1 where all steps are equal; the number of
        steps where all change happens in one.
        """
        return max(max(piece) * len(piece) / (sum(piece) or 1.0) for piece in self.step_sizes)


def run_interpolation(recipe: InterpolateRecipe, context: TaskContext) -> InterpolateResult | None:
    """Interpolate, decode and write. What an earlier run has written there is replaced.

    Only the first process of a launch does; the others return None.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.uses.decoded_media import claim_local_folder, write_json

    if not context.is_first_process:
        return None
    rows, ends, media = _open(recipe, choose_device(context.device))
    folder = claim_local_folder(
        recipe.output.path,
        recipe.task,
        dump_recipe(resolve(recipe)),
        [SAMPLES, SUMMARY, STRIP + media.suffix],
    )
    result = _interpolate(recipe, folder, rows, ends, media)
    summary = {
        "latents": recipe.latents,
        "between": list(recipe.between),
        "method": recipe.method,
        "steps": recipe.steps,
        "unevenness": result.unevenness,
        "step_sizes": result.step_sizes,
        "outside_distance": result.outside_distance,
        "num_outside": sum(point["is_outside"] for point in result.points),
    }
    write_json(folder / SUMMARY, summary)
    return result


def open_interpolation(recipe: InterpolateRecipe, remote: Collection[str]) -> None:
    """Open the latent dataset and its decoder on the CPU, and write nothing."""
    _open(recipe, "cpu")


def report_interpolation(result: InterpolateResult | None) -> str:
    """Return what an interpolate task says at its end."""
    if result is None:
        return "interpolated by the first process"
    outside = [point for point in result.points if point["is_outside"]]
    farthest = max(point["nearest_distance"] for point in result.points)
    return "\n".join(
        [
            f"{result.folder}: {len(result.points)} points",
            f"  largest step over mean step: {result.unevenness:.3g} (1: all steps are equal)",
            f"  {len(outside)} points are outside the data: farther than"
            f" {result.outside_distance:.3g} standard deviations per value from the nearest item,"
            f" which {OUTSIDE_QUANTILE:.0%} of the items are not from another item; the farthest:"
            f" {farthest:.3g}",
        ]
    )


def _open(recipe: InterpolateRecipe, device: str) -> tuple[RawRows, Tensor, MediaDecoder]:
    """Return all rows, the posterior means of the items to go through, and the decoder."""
    from latentkit.reading.dataset import open_dataset
    from latentkit.store.dataset_json import read_dataset
    from latentkit.uses.decoded_media import open_media_decoder
    from latentkit.uses.raw_rows import open_rows

    dataset = open_dataset(recipe.latents)
    rows = open_rows(dataset, "mean", recipe.seed)
    ends, _ = rows.moments(rows.find(recipe.between))
    return rows, ends, open_media_decoder(dataset, read_dataset(dataset.folder)["parts"], device)


def _interpolate(
    recipe: InterpolateRecipe, folder: Path, rows: RawRows, ends: Tensor, media: MediaDecoder
) -> InterpolateResult:
    """Decode and write each piece of the path."""
    from latentkit.uses.nearest_rows import find_nearest, reference_distances
    from latentkit.uses.paths import make_path
    from latentkit.uses.samplers import channel_moments

    mean, squares = channel_moments(rows.batches())
    std = (squares - mean.square()).clamp_min(0).sqrt()
    limit = float(reference_distances(rows, std).quantile(OUTSIDE_QUANTILE))
    points: list[dict[str, Any]] = []
    strips, step_sizes = [], []
    for number, latents in enumerate(make_path(ends, recipe.steps, recipe.method, rows, std)):
        nearest = find_nearest(latents, rows, std, None)
        shown = list(media.decode(latents, recipe.batch_size))
        strips.append(shown)
        pairs = itertools.pairwise(shown)
        step_sizes.append([float((b - a).square().mean().sqrt()) for a, b in pairs])
        for step, (key, distance) in enumerate(
            zip(nearest.keys, nearest.distances.tolist(), strict=True)
        ):
            point: dict[str, Any] = {"file_name": f"{len(points):04d}{media.suffix}"}
            point |= {"from": recipe.between[number], "to": recipe.between[number + 1]}
            point |= {"position": step / (recipe.steps - 1), "nearest_key": key}
            points.append({**point, "nearest_distance": distance, "is_outside": distance > limit})
    _write(folder, points, strips, media)
    return InterpolateResult(folder, points, step_sizes, limit)


def _write(
    folder: Path,
    points: Sequence[dict[str, Any]],
    strips: Sequence[Sequence[Tensor]],
    media: MediaDecoder,
) -> None:
    """Write a media file per point, their metadata, and a strip for each piece."""
    (folder / SAMPLES).mkdir()
    decoded = [tensor for strip in strips for tensor in strip]
    with (folder / SAMPLES / METADATA).open("w", encoding="utf-8") as lines:
        for point, tensor in zip(points, decoded, strict=True):
            media.modality.render([[tensor]], folder / SAMPLES / point["file_name"])
            lines.write(json.dumps(point, ensure_ascii=False) + "\n")
    media.modality.render(strips, folder / (STRIP + media.suffix))

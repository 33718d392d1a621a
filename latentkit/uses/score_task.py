"""The score task: how unusual each item of a latent dataset is, with thresholds, and measured
against labels where there are any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentkit.contracts import TaskContext
from latentkit.errors import StoreError
from latentkit.recipe.schema import dump_recipe, resolve
from latentkit.uses.recipes import COMBINED, ScoreRecipe, with_absolute

if TYPE_CHECKING:
    from latentkit.uses.calibration import Bools, Scores, Threshold
    from latentkit.uses.media_dataset import MediaDataset

SCORES, SUMMARY, UNUSUAL = "scores.parquet", "score.json", "unusual"


@dataclass(frozen=True)
class ScoreResult:
    """Result of a score task.

    Args:
        folder: holds scores.parquet, score.json, recipe.yaml and unusual.png (or as the modality
            renders).
        keys, views: of the rows, in the order of the dataset.
        scores: by name, (N,) float64; higher is more unusual, nan where an item has no such score.
        thresholds: by score.
        roc_auc, average_precision: by score; empty without labels.
        scale: standard deviation of the likelihood in the ELBO; None without one.
        num_missing: rows whose media the source doesn't have any more.
    """

    folder: Path
    keys: list[str]
    views: list[str]
    scores: Mapping[str, Scores]
    thresholds: Mapping[str, Threshold]
    roc_auc: Mapping[str, float]
    average_precision: Mapping[str, float]
    scale: float | None
    num_missing: int

    @property
    def is_unusual(self) -> Bools:
        """Return whether the combined score of each row lies above its threshold, (N,)."""
        found: Bools = self.scores[COMBINED] > self.thresholds[COMBINED].value
        return found


def run_scoring(recipe: ScoreRecipe, context: TaskContext) -> ScoreResult | None:
    """Score and write the results. What an earlier run has written there is replaced.

    Only the first process of a launch scores; the others return None.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.uses.decoded_media import claim_local_folder

    if not context.is_first_process:
        return None
    recipe = with_absolute(recipe, "clean")
    scored, clean = _open(recipe, choose_device(context.device))
    labels = _find_labels(scored, clean, recipe)
    images = [UNUSUAL + scored.media.suffix] if recipe.from_media else []
    folder = claim_local_folder(
        recipe.output.path, recipe.task, dump_recipe(resolve(recipe)), [SCORES, SUMMARY, *images]
    )
    result = _measure(recipe, folder, scored, clean, labels)
    _write(result, recipe, scored, labels)
    return result


def open_scoring(recipe: ScoreRecipe, remote: Collection[str]) -> None:
    """Open the latent datasets and their decoder on the CPU, and write nothing."""
    recipe = with_absolute(recipe, "clean")
    _find_labels(*_open(recipe, "cpu"), recipe)


def report_scoring(result: ScoreResult | None) -> str:
    """Return what a score task says at its end."""
    if result is None:
        return "scored by the first process"
    threshold = result.thresholds[COMBINED]
    low, high = threshold.interval
    lines = [
        f"{result.folder}: {len(result.keys)} items, {int(result.is_unusual.sum())} of them unusual"
        f" (combined score above {threshold.value:.4g}, set by {threshold.num_items} items of which"
        f" {threshold.rate:.2%} lie above it; 95% interval {low:.2%} to {high:.2%})"
    ]
    if result.num_missing:
        lines.append(
            f"  {result.num_missing} items aren't in the source any more: only their latents are"
            " scored"
        )
    for name, area in sorted(result.roc_auc.items(), key=lambda item: -item[1]):
        precision = result.average_precision[name]
        lines.append(f"  {name}: ROC AUC {area:.4f}, average precision {precision:.4f}")
    return "\n".join(lines)


def _open(recipe: ScoreRecipe, device: str) -> tuple[MediaDataset, MediaDataset | None]:
    from latentkit.uses.media_dataset import check_clean, open_media_dataset
    from latentkit.uses.score_items import split_usual

    def open_one(path: str, columns: Sequence[str]) -> MediaDataset:
        return open_media_dataset(path, columns, recipe, device, recipe.from_media)

    try:
        scored = open_one(recipe.latents, [recipe.label] if recipe.label else [])
        clean = None if recipe.clean is None else open_one(recipe.clean, [])
    except StoreError as error:
        if "source can't be opened" not in str(error):
            raise
        raise StoreError(f"{error}. Set from_media to false to score latents alone") from error
    if clean is not None:
        check_clean(clean, scored)
    split_usual(recipe, scored, clean)
    return scored, clean


def _find_labels(
    scored: MediaDataset, clean: MediaDataset | None, recipe: ScoreRecipe
) -> Bools | None:
    """Return which rows are labeled unusual; None without labels.

    Raises:
        StoreError: all rows are, or none, or a clean one is.
    """
    if recipe.label is None:
        return None
    labels = scored.has_value(recipe.label, recipe.unusual)
    if labels.all() or not labels.any():
        found = ", ".join(scored.values_of(recipe.label)[:10])
        raise StoreError(
            f"{scored.where}: {'all' if labels.all() else 'no'} items have one of the values"
            f" {list(recipe.unusual)} of {recipe.label}; expected some. Its values: {found}. Name"
            " those of unusual items with `unusual`"
        )
    if clean is not None:
        wrong = int(clean.has_value(recipe.label, recipe.unusual).sum())
        if wrong:
            raise StoreError(
                f"{clean.where}: {wrong} items have a value of {recipe.label} that means unusual"
                f" ({list(recipe.unusual)}); expected a clean dataset, without such items"
            )
    return labels


def _measure(
    recipe: ScoreRecipe,
    folder: Path,
    scored: MediaDataset,
    clean: MediaDataset | None,
    labels: Bools | None,
) -> ScoreResult:
    """Score all rows, set thresholds, and measure the scores against labels."""
    import numpy as np

    from latentkit.uses.calibration import average_precision, roc_auc, set_threshold
    from latentkit.uses.score_items import score_items

    found = score_items(recipe, scored, clean)
    rate = recipe.contamination if clean is None else recipe.false_positive_rate
    areas, precisions = dict[str, float](), dict[str, float]()
    if labels is not None:
        for name, values in found.scores.items():
            known = ~np.isnan(values)
            areas[name] = roc_auc(values[known], labels[known])
            precisions[name] = average_precision(values[known], labels[known])
    return ScoreResult(
        folder,
        scored.keys,
        scored.views,
        found.scores,
        {name: set_threshold(values, rate) for name, values in found.reference.items()},
        areas,
        precisions,
        found.scale,
        found.num_missing,
    )


def _write(
    result: ScoreResult, recipe: ScoreRecipe, scored: MediaDataset, labels: Bools | None
) -> None:
    """Write scores.parquet, score.json and the image of the most unusual items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from latentkit.uses.decoded_media import write_json

    columns = {
        "key": result.keys,
        "view": result.views,
        **({} if labels is None else {"is_labeled_unusual": labels}),
        **{name: pa.array(values, from_pandas=True) for name, values in result.scores.items()},
        "is_unusual": result.is_unusual,
    }
    pq.write_table(pa.table(columns), result.folder / SCORES)
    summary = {
        "latents": recipe.latents,
        "clean": recipe.clean,
        "num_items": len(result.keys),
        "num_unusual": int(result.is_unusual.sum()),
        "num_missing_media": result.num_missing,
        "likelihood_scale": result.scale,
        "thresholds": {name: one.as_json() for name, one in result.thresholds.items()},
        "roc_auc": dict(result.roc_auc),
        "average_precision": dict(result.average_precision),
    }
    write_json(result.folder / SUMMARY, summary)
    if recipe.from_media:
        scored.render_items(
            result.scores[COMBINED],
            recipe.shown,
            result.folder / (UNUSUAL + scored.media.suffix),
        )

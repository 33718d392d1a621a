"""The augment task: more items for each class of a small latent dataset, with their labels and what
each was made of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import TaskContext
from latentkit.errors import RecipeError, StoreError
from latentkit.recipe.schema import dump_recipe, resolve
from latentkit.uses.recipes import AugmentRecipe, with_absolute

if TYPE_CHECKING:
    from torch import Tensor

    from latentkit.uses.decoded_media import MediaDecoder
    from latentkit.uses.new_items import NewItem
    from latentkit.uses.raw_rows import RawRows

SAMPLES, METADATA, GRID = "samples", "metadata.jsonl", "grid"
SHOWN_PER_METHOD = 3


@dataclass(frozen=True)
class AugmentResult:
    """Result of an augment task.

    Args:
        folder: holds samples/ (media files and metadata.jsonl), grid.png (or as the modality
            renders; a row per class) and recipe.yaml.
        counts: new items by label and method.
        num_used: items that they were made of.
        num_left_out: test items among `latents`, which were left out.
    """

    folder: Path
    counts: Mapping[Any, Mapping[str, int]]
    num_used: int
    num_left_out: int


def run_augmenting(recipe: AugmentRecipe, context: TaskContext) -> AugmentResult | None:
    """Make, decode and write new items. What an earlier run has written there is replaced.

    Only the first process of a launch does; the others return None.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.uses.decoded_media import claim_local_folder
    from latentkit.uses.fit_sampler import fit_sampler, refit
    from latentkit.uses.new_items import make_items

    if not context.is_first_process:
        return None
    recipe = with_absolute(recipe, "test")
    rows, num_left_out, media = _open(recipe, choose_device(context.device))
    classes = rows.split_by(recipe.label)
    samplers = {}
    if recipe.samples:
        fitted = fit_sampler(rows, recipe)
        context.say(str(fitted))
        samplers = {label: refit(fitted.sampler, part, recipe) for label, part in classes.items()}
    owned = [SAMPLES, GRID + media.suffix]
    folder = claim_local_folder(
        recipe.output.path, recipe.task, dump_recipe(resolve(recipe)), owned
    )
    counts = _write(folder, make_items(classes, samplers, recipe), media, recipe)
    return AugmentResult(folder, counts, sum(map(len, classes.values())), num_left_out)


def open_augmenting(recipe: AugmentRecipe, remote: Collection[str]) -> None:
    """Open the latent dataset and its decoder on the CPU, and write nothing."""
    rows, _, _ = _open(with_absolute(recipe, "test"), "cpu")
    rows.split_by(recipe.label)


def report_augmenting(result: AugmentResult | None) -> str:
    """Return what an augment task says at its end."""
    if result is None:
        return "augmented by the first process"
    total = sum(sum(of_class.values()) for of_class in result.counts.values())
    methods = sum((Counter(of_class) for of_class in result.counts.values()), Counter[str]())
    listed = ", ".join(f"{count} by {method}" for method, count in methods.items())
    left_out = f"; {result.num_left_out} test items left out" if result.num_left_out else ""
    return (
        f"{result.folder}: {total} new items of {len(result.counts)} classes ({listed}), made of"
        f" {result.num_used} items{left_out}"
    )


def _open(recipe: AugmentRecipe, device: str) -> tuple[RawRows, int, MediaDecoder]:
    """Return the rows to use, the number of test items left out, and the decoder."""
    from dataclasses import replace

    import numpy as np

    from latentkit.reading.dataset import open_dataset
    from latentkit.store.dataset_json import read_dataset
    from latentkit.uses.decoded_media import open_media_decoder
    from latentkit.uses.new_items import check_no_test_items, check_posteriors
    from latentkit.uses.raw_rows import open_rows

    if not (recipe.draws or recipe.interpolations or recipe.samples):
        raise RecipeError(
            f"{recipe.origin}: draws, interpolations and samples are 0; expected one above 0"
        )
    named = [recipe.label] + ([recipe.test_column] if recipe.test_column else [])
    try:
        dataset = open_dataset(recipe.latents, columns=named)
    except ValueError as error:
        raise StoreError(f"{recipe.origin}: label or test_column: {error}") from error
    rows = open_rows(dataset, "auto", recipe.seed)
    check_posteriors(rows, recipe)
    num_left_out = 0
    if recipe.test_column is not None:
        tests = {str(value) for value in recipe.test_values}
        is_test = np.array(
            [str(row.get(recipe.test_column)) in tests for row in dataset.row_columns()]
        )
        if is_test.all() or not is_test.any():
            raise StoreError(
                f"{dataset.folder}: {'all' if is_test.all() else 'no'} items have one of the values"
                f" {list(recipe.test_values)} of {recipe.test_column}; expected some"
            )
        rows, num_left_out = replace(rows, items=rows.items[~is_test]), int(is_test.sum())
    if recipe.test is not None:
        check_no_test_items(rows, open_dataset(recipe.test))
    parts = read_dataset(dataset.folder)["parts"]
    return rows, num_left_out, open_media_decoder(dataset, parts, device)


def _write(
    folder: Path, items: Iterator[NewItem], media: MediaDecoder, recipe: AugmentRecipe
) -> dict[Any, Counter[str]]:
    """Write media files, their metadata and the grid; return how many there are."""
    import torch

    (folder / SAMPLES).mkdir()
    counts: dict[Any, Counter[str]] = {}
    shown: dict[Any, list[Tensor]] = {}
    number = 0
    with (folder / SAMPLES / METADATA).open("w", encoding="utf-8") as lines:
        while batch := list(islice(items, recipe.batch_size)):
            latents = torch.stack([item.latent for item in batch])
            for item, decoded in zip(batch, media.decode(latents, len(batch)), strict=True):
                name = f"{number:06d}{media.suffix}"
                media.modality.render([[decoded]], folder / SAMPLES / name)
                known = {"file_name": name, recipe.label: item.label, **item.describe()}
                lines.write(json.dumps({**known, "seed": recipe.seed}, ensure_ascii=False) + "\n")
                counts.setdefault(item.label, Counter())[item.method] += 1
                of_class = shown.setdefault(item.label, [])
                if counts[item.label][item.method] <= SHOWN_PER_METHOD:
                    of_class.append(decoded)
                number += 1
    media.modality.render(list(shown.values()), folder / (GRID + media.suffix))
    return counts

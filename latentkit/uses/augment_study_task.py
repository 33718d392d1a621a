"""The augment-study task: do new items of a variational autoencoder help a classifier, beside
classical augmentation? The same classifier is trained on real items alone, with either, and with
both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import TaskContext
from latentkit.errors import StoreError
from latentkit.recipe.schema import dump_recipe, resolve
from latentkit.uses.recipes import AugmentStudyRecipe, with_absolute

if TYPE_CHECKING:
    from latentkit.uses.classifier import LabeledImages
    from latentkit.uses.media_dataset import MediaDataset
    from latentkit.uses.paired import Interval

SUMMARY = "augment-study.json"
ARMS = {
    "real": (False, False),
    "classical": (True, False),
    "vae": (False, True),
    "both": (True, True),
}
"""By name: whether images are augmented classically, and whether new items are added."""


@dataclass(frozen=True)
class AugmentStudyResult:
    """Result of an augment-study task.

    Args:
        folder: holds augment-study.json and recipe.yaml.
        accuracies: by items per class and arm, the accuracy on test items of each repetition.
    """

    folder: Path
    accuracies: Mapping[int, Mapping[str, Sequence[float]]]

    def accuracy(self, size: int, arm: str) -> Interval:
        """Return the mean accuracy of an arm, with its interval."""
        from latentkit.uses.paired import interval_of

        return interval_of(self.accuracies[size][arm])

    def gain(self, size: int, arm: str, over: str) -> Interval:
        """Return by how much an arm is better than another, with the interval of pairs."""
        from latentkit.uses.paired import paired_interval

        return paired_interval(self.accuracies[size][arm], self.accuracies[size][over])

    def verdict(self, size: int) -> str:
        """Return in words whether the new items help beside classical augmentation."""
        gain = self.gain(size, "both", "classical")
        if gain.low > 0:
            return "new items help beside classical augmentation"
        if gain.high < 0:
            return "new items harm beside classical augmentation"
        return "no difference is shown: classical augmentation alone is enough"


def run_augment_study(
    recipe: AugmentStudyRecipe, context: TaskContext
) -> AugmentStudyResult | None:
    """Train and test all classifiers, and write their accuracies.

    Only the first process of a launch does; the others return None.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.device import choose_device
    from latentkit.uses.decoded_media import claim_local_folder, write_json

    if not context.is_first_process:
        return None
    recipe = with_absolute(recipe, "test")
    device = choose_device(context.device)
    train, test = _open(recipe, device)
    folder = claim_local_folder(
        recipe.output.path, recipe.task, dump_recipe(resolve(recipe)), [SUMMARY]
    )
    classes = sorted(train.rows.split_by(recipe.label), key=str)
    tested = _read_images(test, recipe, classes, recipe.max_test).to(device)
    accuracies: dict[int, dict[str, list[float]]] = {}
    for size in recipe.sizes:
        found = accuracies[size] = {arm: [] for arm in ARMS}
        for seed in range(recipe.seed, recipe.seed + recipe.seeds):
            for arm, value in _run_once(train, tested, recipe, classes, size, seed).items():
                found[arm].append(value)
            shown = ", ".join(f"{arm} {values[-1]:.4f}" for arm, values in found.items())
            context.say(f"{size} items per class, seed {seed}: {shown}")
    result = AugmentStudyResult(folder, accuracies)
    write_json(folder / SUMMARY, _summarize(result, recipe, len(tested)))
    return result


def open_augment_study(recipe: AugmentStudyRecipe, remote: Collection[str]) -> None:
    """Open the latent datasets and their decoder on the CPU, and write nothing."""
    _open(with_absolute(recipe, "test"), "cpu")


def report_augment_study(result: AugmentStudyResult | None) -> str:
    """Return a table of accuracies, and a verdict for each number of items."""
    if result is None:
        return "studied by the first process"
    lines = [f"{result.folder}: accuracy on test items, mean and 95% interval"]
    for size in result.accuracies:
        found = {arm: result.accuracy(size, arm) for arm in ARMS}
        shown = ", ".join(
            f"{arm} {one.mean:.4f} ({one.low:.4f} to {one.high:.4f})" for arm, one in found.items()
        )
        gain = result.gain(size, "both", "classical")
        lines += [
            f"  {size} items per class: {shown}",
            f"    both minus classical: {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f});"
            f" {result.verdict(size)}",
        ]
    return "\n".join(lines)


def _open(recipe: AugmentStudyRecipe, device: str) -> tuple[MediaDataset, MediaDataset]:
    """Open the items to train on and those to test.

    Raises:
        StoreError: latents aren't of images, a class has too few items, or a test item is among
            those to train on.
    """
    from latentkit.uses.media_dataset import open_media_dataset
    from latentkit.uses.new_items import check_no_test_items, check_posteriors

    train, test = (
        open_media_dataset(path, [recipe.label], recipe, device)
        for path in (recipe.latents, recipe.test)
    )
    if (axes := train.rows.dataset.layout.axes) != "CHW":
        raise StoreError(f"{train.where}: expected latents of images (CHW), got {axes}")
    check_posteriors(train.rows, recipe)
    most = max(recipe.sizes)
    for value, rows in train.rows.split_by(recipe.label).items():
        if len(rows) < most:
            raise StoreError(
                f"{train.where}: {recipe.label} {value!r} has {len(rows)} items; expected at least"
                f" {most}. Set sizes to smaller numbers"
            )
    check_no_test_items(train.rows, test.rows.dataset)
    return train, test


def _run_once(
    train: MediaDataset,
    tested: LabeledImages,
    recipe: AugmentStudyRecipe,
    classes: Sequence[Any],
    size: int,
    seed: int,
) -> dict[str, float]:
    """Return the accuracy of each arm, with the same items and the same network at the start."""
    import numpy as np
    import torch

    from latentkit.uses.classifier import LabeledImages, accuracy, train_classifier
    from latentkit.uses.fit_sampler import fit_sampler, refit
    from latentkit.uses.new_items import make_items

    generator = np.random.default_rng(seed)
    parts = {
        label: replace(rows, items=np.sort(generator.choice(rows.items, size, replace=False)))
        for label, rows in train.rows.split_by(recipe.label).items()
    }
    chosen = replace(train.rows, items=np.concatenate([part.items for part in parts.values()]))
    seeded = recipe.model_copy(update={"seed": seed})
    samplers = {}
    if recipe.samples:
        sampler = fit_sampler(chosen, seeded).sampler
        samplers = {label: refit(sampler, part, seeded) for label, part in parts.items()}
    real = _read_images(replace(train, rows=chosen), recipe, classes, len(chosen))
    made = list(make_items(parts, samplers, seeded))
    decoded = train.media.decode(torch.stack([item.latent for item in made]), recipe.batch_size)
    labels = [classes.index(item.label) for item in made]
    more = LabeledImages(
        torch.cat([real.images, torch.stack(list(decoded))]),
        torch.cat([real.labels, torch.tensor(labels)]),
    )
    found = {}
    for arm, (augments, adds) in ARMS.items():
        data = (more if adds else real).to(train.device)
        network = train_classifier(data, len(classes), recipe.steps, seed, augments, recipe.flips)
        found[arm] = accuracy(network, tested)
    return found


def _read_images(
    dataset: MediaDataset, recipe: AugmentStudyRecipe, classes: Sequence[Any], most: int
) -> LabeledImages:
    """Return the prepared images of rows, at most so many, spread evenly.

    Raises:
        StoreError: media are gone from the source, or a label isn't among the classes.
    """
    import torch

    from latentkit.uses.classifier import LabeledImages

    items = dataset.rows.spread(most).items.tolist()
    columns = list(dataset.rows.dataset.row_columns())
    labels = [columns[item].get(recipe.label) for item in items]
    unknown = sorted({str(label) for label in labels if label not in classes})
    if unknown:
        raise StoreError(
            f"{dataset.where}: no item to train on has the {recipe.label} {unknown[0]!r}; expected"
            f" one of {', '.join(map(str, classes[:10]))}"
        )
    tensors = dataset.prepare([(dataset.keys[item], dataset.views[item]) for item in items])
    numbers = torch.tensor([classes.index(label) for label in labels])
    return LabeledImages(torch.stack(tensors), numbers)


def _summarize(
    result: AugmentStudyResult, recipe: AugmentStudyRecipe, num_tested: int
) -> dict[str, Any]:
    """Return the content of augment-study.json."""
    comparisons = [("classical", "real"), ("vae", "real"), ("both", "real"), ("both", "classical")]
    return {
        "latents": recipe.latents,
        "test": recipe.test,
        "num_test_items": num_tested,
        "seeds": recipe.seeds,
        "sizes": {
            str(size): {
                "accuracies": {arm: list(values) for arm, values in arms.items()},
                "mean_accuracy": {arm: result.accuracy(size, arm).as_json() for arm in ARMS},
                "gains": {
                    f"{arm} over {other}": result.gain(size, arm, other).as_json()
                    for arm, other in comparisons
                },
                "verdict": result.verdict(size),
            }
            for size, arms in result.accuracies.items()
        },
    }

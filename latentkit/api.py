"""The public functions: `latentkit.encode`, `run`, `sample`, `interpolate`, `augment`,
`augment_study`, `score`, `open`, `encoder`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from latentkit.contracts import Decodes
    from latentkit.encoding.latent_encoder import LatentEncoder
    from latentkit.reading.dataset import LatentDataset
    from latentkit.reading.posterior import Posterior
    from latentkit.reading.rows import Views
    from latentkit.reading.selecting import Keys
    from latentkit.recipe.overrides import Overrides
    from latentkit.store.folder import Folder
    from latentkit.store.unit_cache import Cache
    from latentkit.uses.augment_study_task import AugmentStudyResult
    from latentkit.uses.augment_task import AugmentResult
    from latentkit.uses.interpolate_task import InterpolateResult
    from latentkit.uses.recipes import PathMethod, SamplerName
    from latentkit.uses.sample_task import SampleResult
    from latentkit.uses.score_task import ScoreResult


def encode(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    overrides: Overrides = (),
    device: str = "auto",
    devices: Sequence[str] = (),
) -> LatentDataset:
    """Encode what is not encoded yet of `source` into the folder `output`; return the dataset.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`, a small model to
            try things out with.
        size: side of the images in pixels, or (height, width); None is the modality's default.
        overrides: any key of the recipe, such as {"batch_size": 64, "output.dtype": "float32"}.
        device, devices: see `latentkit.contracts.TaskContext`.

    Raises:
        LatentkitError: whatever the user can fix; the message says how.
    """
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import EncodeRecipe, parse_recipe
    from latentkit.tasks.encode_task import print_remark, run_encode
    from latentkit.tasks.recipe_from_arguments import encode_recipe
    from latentkit.tasks.run_recipe import check_launcher_settings

    named = None if encoder is None else os.fspath(encoder)
    values, remarks = encode_recipe(os.fspath(source), os.fspath(output), named, size, overrides)
    for remark in remarks:
        print_remark(remark)
    recipe = parse_recipe(values, "encode", Path.cwd(), overrides)
    if not isinstance(recipe, EncodeRecipe) or recipe.encoder is None:
        raise ValueError(
            "overrides of encode can't change the task or name several encoders; use latentkit.run"
        )
    check_launcher_settings()
    context = TaskContext(device=device, devices=tuple(devices), fits=True)
    return run_encode(recipe, context).datasets()[""]


def run(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    dry_run: bool = False,
    prune: bool = False,
    retry_skipped: bool = False,
    device: str = "auto",
    devices: Sequence[str] = (),
) -> Any:
    """Run any recipe. Run it again to continue a stopped run, or to encode a changed source.

    Args:
        recipe: path of a YAML file, or its values; relative paths in values start from the working
            directory.
        overrides: as for `encode`.
        dry_run, prune, retry_skipped, device, devices: see `latentkit.contracts.TaskContext`.

    Returns:
        An encode task's `LatentDataset` (with `encoders:`, one by name), a train task's
        `TrainResult`, an evaluate task's `EvaluateResult`, what a plugin's task returns; with
        `dry_run`, a text that says what would be done.

    Raises:
        LatentkitError: whatever the user can fix; the message says how.
    """
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import load_recipe, parse_recipe
    from latentkit.tasks.encode_task import EncodeRun
    from latentkit.tasks.run_recipe import run_recipe

    parsed = (
        parse_recipe(recipe, "recipe", Path.cwd(), overrides)
        if isinstance(recipe, Mapping)
        else load_recipe(recipe, overrides)
    )
    result = run_recipe(parsed, TaskContext(dry_run, prune, retry_skipped, device, tuple(devices)))
    if isinstance(result, EncodeRun):
        datasets = result.datasets()
        return datasets[""] if set(datasets) == {""} else datasets
    return result


def sample(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    count: int = 64,
    sampler: SamplerName = "auto",
    by: str | None = None,
    seed: int = 0,
    overrides: Overrides = (),
    device: str = "auto",
) -> SampleResult | None:
    """Draw new items from a latent dataset, decode them, and write them into the folder `output`.

    `output` has samples/ (a media file per item, and metadata.jsonl with sampler, seed and the
    nearest item of the dataset), which `datasets.load_dataset` reads; a grid of the first 64; and
    sample.json, with the gap between dataset and prior.

    Args:
        dataset: folder of a latent dataset, or its URL.
        count: new items.
        sampler: "normal", "channel-gaussian", "spatial-gaussian", "low-rank", "mixture", or "auto":
            the one under which latents that it wasn't fitted to are most probable.
        by: attribute such as "label": equally many items of each of its values.
        seed: of every random draw.
        overrides: other keys of the recipe, such as {"rank": 16}.
        device: as for `run`.

    Returns:
        None in all processes of a launch but the first.

    Raises:
        LatentkitError: whatever the user can fix, such as an encoder that can't decode.
    """
    values = {"count": count, "sampler": sampler, "by": by, "seed": seed}
    return _run_use("sample", dataset, output, values, overrides, device)  # type: ignore[no-any-return]


def interpolate(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    between: Sequence[str],
    *,
    method: PathMethod = "spherical",
    steps: int = 9,
    seed: int = 0,
    overrides: Overrides = (),
    device: str = "auto",
) -> InterpolateResult | None:
    """Decode the way from one item of a latent dataset to another, and write it into the folder
    `output`: samples/ with a media file per point, a strip of all, and interpolate.json with how
    even the steps are and where the way leaves the data.

    Args:
        dataset: folder of a latent dataset, or its URL.
        between: keys of two or more items, in order.
        method: "linear", "spherical" or "neighbors"; see the task's recipe.
        steps: points from one item to the next, with both of them; at least 3.
        seed: has no effect; a path is the same every time.
        overrides: other keys of the recipe, such as {"batch_size": 4}.
        device: as for `run`.

    Returns:
        None in all processes of a launch but the first.

    Raises:
        LatentkitError: whatever the user can fix, such as a key that isn't there.
    """
    values = {"between": list(between), "method": method, "steps": steps, "seed": seed}
    return _run_use("interpolate", dataset, output, values, overrides, device)  # type: ignore[no-any-return]


def augment(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    label: str = "label",
    test: str | os.PathLike[str] | None = None,
    seed: int = 0,
    overrides: Overrides = (),
    device: str = "auto",
) -> AugmentResult | None:
    """Make more items for each class of a small latent dataset, and write them into the folder
    `output`: samples/ with a media file per item and metadata.jsonl with its label, the method and
    the keys it was made of, which `datasets.load_dataset` reads; and a grid with a row per class.

    Args:
        dataset: folder of a latent dataset of training items, or its URL.
        label: attribute that is the class.
        test: latent dataset of test items; an error says if one of them is in `dataset`.
        seed: of every random draw.
        overrides: other keys of the recipe, such as {"draws": 4, "samples": 0}.
        device: as for `run`.

    Returns:
        None in all processes of a launch but the first.

    Raises:
        LatentkitError: whatever the user can fix, such as a class with one item.
    """
    place = None if test is None else os.fspath(test)
    values = {"label": label, "test": place, "seed": seed}
    return _run_use("augment", dataset, output, values, overrides, device)  # type: ignore[no-any-return]


def augment_study(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    test: str | os.PathLike[str],
    label: str = "label",
    sizes: Sequence[int] = (10, 50, 200),
    seed: int = 0,
    overrides: Overrides = (),
    device: str = "auto",
) -> AugmentStudyResult | None:
    """Train a classifier on few images, with classical augmentation, with new items of `augment`,
    with both and with neither, and write accuracies with intervals and a verdict into the folder
    `output` (augment-study.json).

    Args:
        dataset: folder of a latent dataset of images to train on, or its URL.
        test: latent dataset of test items; an error says if one of them is in `dataset`.
        label: attribute that is the class.
        sizes: items per class to train on.
        seed: of the first repetition.
        overrides: other keys of the recipe, such as {"seeds": 10}.
        device: as for `run`.

    Returns:
        None in all processes of a launch but the first.

    Raises:
        LatentkitError: whatever the user can fix, such as a class with too few items.
    """
    values = {"test": os.fspath(test), "label": label, "sizes": list(sizes), "seed": seed}
    return _run_use("augment-study", dataset, output, values, overrides, device)  # type: ignore[no-any-return]


def score(
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    clean: str | os.PathLike[str] | None = None,
    label: str | None = None,
    unusual: Sequence[str | int | float | bool] = (),
    seed: int = 0,
    overrides: Overrides = (),
    device: str = "auto",
) -> ScoreResult | None:
    """Score how unusual each item of a latent dataset is, and write the scores into the folder
    `output`: scores.parquet by key and view, score.json with thresholds, and the most unusual items
    as images. The same item always gets the same score.

    Args:
        dataset: folder of a latent dataset, or its URL.
        clean: latent dataset of usual items only, by the same encoder: four fifths define what is
            usual, the rest sets the thresholds. None: the scored items do both.
        label: attribute that says which items are unusual, to measure the scores by.
        unusual: its values of unusual items.
        seed: of the posterior's draws.
        overrides: other keys of the recipe, such as {"from_media": False}.
        device: as for `run`.

    Returns:
        None in all processes of a launch but the first.

    Raises:
        LatentkitError: whatever the user can fix, such as an encoder that can't decode.
    """
    values = {
        "clean": None if clean is None else os.fspath(clean),
        "label": label,
        "unusual": list(unusual),
        "seed": seed,
    }
    return _run_use("score", dataset, output, values, overrides, device)  # type: ignore[no-any-return]


def _run_use(
    task: str,
    dataset: str | os.PathLike[str],
    output: str | os.PathLike[str],
    values: Mapping[str, Any],
    overrides: Overrides,
    device: str,
) -> Any:
    """Run a task that takes a latent dataset."""
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import parse_recipe
    from latentkit.tasks.run_recipe import run_recipe

    places = {"latents": os.fspath(dataset), "output": {"path": os.fspath(output)}}
    recipe = parse_recipe({"task": task, **places, **values}, task, Path.cwd(), overrides)
    return run_recipe(recipe, TaskContext(device=device))


def open_encoder(
    name: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    modality: str | None = None,
    options: Mapping[str, Any] | None = None,
    **more_options: Any,
) -> LatentEncoder:
    """Open an encoder and its decoder, to encode and decode from Python.

    Args:
        name: what `encode` takes as `encoder`: name of an encoder plugin, a path, or a hub id.
        device: "auto", a kind such as "cuda", or one device such as "cuda:1".
        dtype: type to encode in, such as "bfloat16" or torch.bfloat16; None is the encoder's
            default. Decoding is in float32.
        modality: name of the modality to encode, for an encoder that takes several, such as image
            and video; None is the encoder's first.
        options: options of the encoder, as under `encoder.with` in a recipe; they can also be
            given as keywords.

    Raises:
        LatentkitError: whatever the user can fix, such as an unknown option.
        ValueError: an option given twice.
    """
    from latentkit.tasks.open_encoder import open_encoder as open_by_name

    given = [*(options or {}), *more_options, *(() if dtype is None else ("dtype",))]
    if twice := {option for option in given if given.count(option) > 1}:
        raise ValueError(f"given twice: {', '.join(sorted(twice))}; give each option once")
    merged = {**(options or {}), **more_options}
    if dtype is not None:
        merged["dtype"] = str(dtype).removeprefix("torch.")
    return open_by_name(os.fspath(name), merged, modality, device)


def open_dataset(
    path: str | os.PathLike[str],
    posterior: Posterior | None = None,
    views: Views = "all",
    columns: str | Sequence[str] = (),
    seed: int = 0,
    cache: Cache = None,
    keys: Keys | None = None,
) -> LatentDataset:
    """Open the latent dataset at `path`.

    Args:
        path: folder that `encode` wrote, or its URL.
        posterior: "sample": a new draw from the posterior in each epoch. "mean": the posterior's
            mean. "moments": mean and log-variance as stored, not normalized. None: "sample" where
            there are moments, else "mean", which is the latent as stored.
        views: "all" gives a row per sample and view, a list only those views, "random" a row per
            sample whose view is drawn each epoch.
        columns: attributes to give with key and view, such as ["text"], or a single one. A row that
            lacks it has None, which `latentkit.collate` takes and torch's own collate function
            doesn't; `latentkit inspect` says how many rows have each.
        seed: seed of all random draws and shuffles.
        cache: local cache for datasets at URLs: a limit in bytes, a folder, or both; None is 64
            GiB in the user's cache folder.
        keys: only the rows with these keys, in the dataset's order: a list, or the path of a text
            file with a key on each line. Keys of skipped samples are ignored.

    Raises:
        StoreError: the dataset is missing, unfinished or damaged.
        ValueError: the dataset lacks that posterior, view, column or key.
    """
    from latentkit.reading.dataset import open_dataset as open_files

    return open_files(path, posterior, views, columns, seed, cache, _open_decoder, keys)


def _open_decoder(folder: Folder, made_with: Mapping[str, str], device: str) -> Decodes:
    """Open the decoder of a dataset's encoder. Only this needs plugins; reading latents doesn't."""
    from latentkit.tasks.open_decoder import open_decoder

    return open_decoder(folder, made_with, device)

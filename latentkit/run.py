"""Recipe to built objects to one of the task functions."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.build import Line, is_launched, lines_of, open_executor
from latentkit.check import check_recipe
from latentkit.contracts import BuildContext, LossSpec
from latentkit.errors import RecipeError, StoreError, TrainingError
from latentkit.plugins import discover
from latentkit.recipe import EncodeRecipe, Overrides, Recipe, TrainRecipe, dump_recipe, load_recipe, parse_recipe, resolve
from latentkit.shorthand import encode_recipe

if TYPE_CHECKING:
    from latentkit.encode import EncodeSummary
    from latentkit.store.reader import LatentDataset
    from latentkit.train import TrainResult


RECIPE = "recipe.yaml"
PREVIEW = "preview.png"


def encode(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    encoder: str | os.PathLike[str] | None = None,
    size: int | tuple[int, int] | None = None,
    overrides: Overrides = (),
) -> LatentDataset:
    """The latent dataset of `source`, encoded into the folder `output` as far as it isn't yet.

    Args:
        source: name of a source plugin, a path, or `owner/name` on the hub.
        output: folder of the latent dataset.
        encoder: name of an encoder plugin, a path, or a hub id; None is `tiny-kl`, which is for trying out.
        size: side of the pictures in pixels, or (height, width); None is the modality's default.
        overrides: any key of the recipe, such as {"batch_size": 64, "output.dtype": "float32"}.

    Raises:
        LatentkitError: whatever the user can mend; the message says how.
    """
    values, remarks = encode_recipe(os.fspath(source), os.fspath(output), None if encoder is None else os.fspath(encoder), size)
    for remark in remarks:
        say(remark)
    recipe = parse_recipe(values, "encode", Path.cwd(), overrides)
    if not isinstance(recipe, EncodeRecipe) or recipe.encoder is None:
        raise ValueError("overrides of encode can't change the task or name several encoders; use latentkit.run")
    return _run_encode(recipe).datasets()[""]


def run(recipe: str | os.PathLike[str] | Mapping[str, Any], overrides: Overrides = ()) -> Any:
    """Run any recipe; again goes on where it stopped.

    Args:
        recipe: path of a YAML file, or its values; relative paths in values start from the working directory.
        overrides: as for `encode`.

    Returns:
        An encode task's `LatentDataset` (with `encoders:`, one by name), a train task's `TrainResult`.

    Raises:
        LatentkitError: whatever the user can mend; the message says how.
    """
    parsed = parse_recipe(recipe, "recipe", Path.cwd(), overrides) if isinstance(recipe, Mapping) else load_recipe(recipe, overrides)
    result = run_recipe(parsed)
    if isinstance(result, EncodeRun):
        datasets = result.datasets()
        return datasets[""] if set(datasets) == {""} else datasets
    return result


@dataclass(frozen=True)
class EncodeRun:
    """What an encode task made: by name of the encoder ("" for the only one), the folder and what this process did."""

    folders: Mapping[str, str]
    summaries: Mapping[str, EncodeSummary]
    previews: Mapping[str, str]

    def datasets(self) -> dict[str, LatentDataset]:
        """The datasets, opened."""
        from latentkit.store.reader import open_dataset

        return {name: open_dataset(folder) for name, folder in self.folders.items()}


def run_recipe(recipe: Recipe) -> EncodeRun | TrainResult:
    """Run a parsed recipe."""
    if isinstance(recipe, EncodeRecipe):
        return _run_encode(recipe)
    if isinstance(recipe, TrainRecipe):
        return _run_train(recipe)
    raise RecipeError(f"{recipe.origin}: task {recipe.task} can't be run")


def say(text: str) -> None:
    """A remark for the user, from the first process of a launch only."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this is the only process, or the launcher's rank 0."""
    return not is_launched() or os.environ.get("RANK", "0") == "0"


# ---------------------------------------------------------------- encode


def _run_encode(recipe: EncodeRecipe) -> EncodeRun:
    folders, summaries, previews = {}, {}, {}
    for line in lines_of(recipe):
        output = f"{recipe.output.path}/{line.name}" if line.name else recipe.output.path
        folders[line.name] = output
        summaries[line.name], preview = _encode_line(line, recipe, output)
        if preview:
            previews[line.name] = preview
    return EncodeRun(folders, summaries, previews)


def _encode_line(line: Line, recipe: EncodeRecipe, output: str) -> tuple[EncodeSummary, str | None]:
    from latentkit.encode import EncodeInputs, EncodeSettings, encode_source
    from latentkit.executors.local import default_device
    from latentkit.preview import store_preview
    from latentkit.store.folder import open_folder

    folder = open_folder(output)
    source = line.open_source()
    executor = open_executor(recipe)
    device = getattr(executor, "device", None) or default_device()
    opener = line.encoder_opener()
    encoder = opener(device)
    modality = line.open_modality(encoder)
    described = {"use": line.source.provided.spec.name, "with": recipe.source.with_}
    inputs = EncodeInputs(source, modality, line.views, opener, line.fingerprint_parts(encoder), described)
    settings = EncodeSettings(
        recipe.output.store, recipe.output.dtype, recipe.output.unit_size, recipe.batch_size, recipe.threads, recipe.compile,
        recipe.seed, recipe.on_bad_sample, recipe.max_bad,
    )  # fmt: skip
    summary = encode_source(
        folder, inputs, executor, device, settings, _recipe_text(recipe, line), show_progress=is_first_process()
    )
    if not recipe.preview or not is_first_process():
        return summary, None
    made = folder.exists(PREVIEW) or store_preview(folder, source, modality, encoder, PREVIEW, recipe.preview)
    return summary, f"{folder}/{PREVIEW}" if made else None


def _recipe_text(recipe: EncodeRecipe, line: Line) -> str:
    """recipe.yaml of one line's dataset, which alone makes it again."""
    values = {}
    for name, value in resolve(recipe).items():
        if name == "encoders":
            values["encoder"] = value[line.name]
        else:
            values[name] = value
    return dump_recipe(values)


# ---------------------------------------------------------------- train


def _run_train(recipe: TrainRecipe) -> TrainResult:
    from latentkit.executors.local import default_device
    from latentkit.train import OptimizerSettings, TrainSettings, WeightedLoss, train

    plugins = {plugin.where: plugin for plugin in check_recipe(recipe, discover())}
    context = BuildContext(device=default_device(), seed=recipe.seed, recipe_dir=recipe.base_dir)

    def build(where: str, context: BuildContext = context) -> Any:
        return plugins[where].provided.spec.build(plugins[where].config, context)

    source, model = build("source"), build("model")
    modality = build("modality", BuildContext(device=context.device, seed=recipe.seed, recipe_dir=recipe.base_dir, input=model.input))
    losses = []
    for number, (name, use) in enumerate(_named_losses(recipe)):
        spec = plugins[f"losses[{number}]"].provided.spec
        assert isinstance(spec, LossSpec)
        losses.append(WeightedLoss(name, build(f"losses[{number}]"), use.weight, spec.role))
    optimizer = OptimizerSettings(**recipe.optimizer.model_dump())
    settings = TrainSettings(
        steps=recipe.steps, batch_size=recipe.batch_size, accumulate=recipe.accumulate, precision=recipe.precision, optimizer=optimizer,
        train=recipe.model.train, ema_decay=recipe.ema.decay if recipe.ema else None, checkpoint_every=recipe.output.checkpoint_every,
        on_bad_sample=recipe.on_bad_sample, max_bad=recipe.max_bad, seed=recipe.seed,
    )  # fmt: skip
    return train(model, source, modality, losses, settings, _open_run(recipe))


SAME_RUN = ("task", "source", "modality", "model", "losses", "seed")
"""Keys of a recipe that can't change between the starts of one training run."""


def _open_run(recipe: TrainRecipe) -> Path:
    """The run's folder, with its recipe.yaml.

    Raises:
        RecipeError: its path is a URL.
        StoreError: the folder can't be written, or holds something else.
        TrainingError: it holds another run; names the keys that differ.
    """
    from latentkit.store.folder import LocalFolder, open_folder

    folder = open_folder(recipe.output.path)
    if not isinstance(folder, LocalFolder):
        raise RecipeError(f"{recipe.origin}: output.path: {folder}: training writes to a local folder")
    text, written = dump_recipe(resolve(recipe)), None
    if folder.exists(RECIPE):
        earlier = load_recipe(folder.path / RECIPE)
        before, now = resolve(earlier), resolve(recipe)
        different = [key for key in SAME_RUN if before.get(key) != now.get(key)]
        if different:
            raise TrainingError(f"{folder} holds another run: {', '.join(different)} differ; give another output.path")
        written = dump_recipe(before)
    elif folder.top_names():
        raise StoreError(f"{folder} holds something else and no {RECIPE}; give the run a folder of its own")
    # A recipe.yaml that somebody wrote by hand stays as it is.
    if is_first_process() and (written is None or folder.read(RECIPE).decode() == written != text):
        folder.replace(RECIPE, text.encode())
        folder.discard_if_empty()
    return folder.path


def _named_losses(recipe: TrainRecipe) -> list[tuple[str, Any]]:
    """A name for each loss: the plugin's, numbered where it is used more than once."""
    uses = [loss.use for loss in recipe.losses]
    return [
        (loss.use if uses.count(loss.use) == 1 else f"{loss.use}-{uses[: number + 1].count(loss.use)}", loss)
        for number, loss in enumerate(recipe.losses)
    ]

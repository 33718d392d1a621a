"""The train task: builds what a train recipe names, and runs the training loop."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.contracts import BuildContext, LossSpec, TaskContext
from latentkit.errors import EncoderError, FingerprintError, RecipeError, StoreError, TrainingError
from latentkit.plugins import Registry, discover
from latentkit.recipe.parts import Evaluate, Optimizer
from latentkit.recipe.schema import TrainRecipe, dump_recipe, load_recipe, resolve
from latentkit.runtime.nested import find_differences
from latentkit.tasks.build_parts import EncoderOpener, configured_encode_of
from latentkit.tasks.check_recipe import (
    ConfiguredPlugin,
    check_recipe,
    number_twins,
    warn_of_unusual_weights,
)

if TYPE_CHECKING:
    from torch import nn

    from latentkit.contracts import Modality
    from latentkit.evaluation.images import Gallery
    from latentkit.store.local_folder import LocalFolder
    from latentkit.training.loop import TrainResult
    from latentkit.training.settings import (
        OptimizerSettings,
        TrainEvaluation,
        TrainSettings,
        WeightedLoss,
    )
    from latentkit.training.stored_moments import StoredMoments

NUM_IMAGES = 6
"""Reconstructions in the grid of one evaluation."""

RECIPE = "recipe.yaml"
CLAIM = "training"
"""Name of the claim that the process holds which writes to a run's folder."""
SAME_RUN = ("task", "source", "modality", "latents", "sizes", "model", "losses", "seed")
"""Keys of a recipe that can't change between the starts of one training run."""


def run_training(recipe: TrainRecipe, context: TaskContext) -> TrainResult:
    """Train as the recipe says, or continue where its run stopped.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.runtime.processes import run_on_first
    from latentkit.runtime.source_remarks import print_remarks, read_remarks
    from latentkit.training.loop import train
    from latentkit.training.start import join_processes

    recipe, remarks = _follow_launcher(recipe)
    parts = _RecipeParts.checked(recipe, lambda: str(join_processes(context.device)))
    with contextlib.ExitStack() as held:
        run_on_first(lambda: held.enter_context(_claim_output(recipe)))
        source, model = parts.build("source"), parts.build("model")
        prepare = parts.prepare(model)
        losses, folder = parts.losses(model), _open_run(recipe)
        tried = run_on_first(lambda: _try_samples(recipe, source, prepare, folder))
        for warning in [*remarks, *warn_of_unusual_weights(recipe), *tried]:
            context.say(f"warning: {warning}")
        if context.is_first_process:
            print_remarks(read_remarks(source))
        wanted = recipe.evaluate
        evaluation = parts.evaluation(wanted, model, folder) if wanted else None
        settings, device = _settings(recipe), context.device
        return train(model, source, prepare, losses, settings, folder, evaluation, device)


def open_training(recipe: TrainRecipe, remote: Collection[str] = ()) -> None:
    """Open all that a run would open before its first step, on the CPU; write nothing. With parts
    at keys `remote`, which may have to be downloaded, open nothing.
    """
    if remote:
        return
    from latentkit.training.start import check_trackers

    parts = _RecipeParts.checked(recipe, lambda: "cpu")
    parts.build("source")
    model = parts.build("model")
    parts.prepare(model)
    parts.losses(model)
    if recipe.evaluate:
        parts.evaluation(recipe.evaluate, model, Path(recipe.output.path))
    check_trackers(_settings(recipe).trackers)


def export_checkpoint(
    run: str, output: str, step: int | None = None, weights: str | None = None
) -> str:
    """Write the model of a run's checkpoint into a new folder, and return a line about it.

    Args:
        output: missing or empty folder.
        step: of the checkpoint; None: the newest.
        weights: "average" or "raw"; None: the average if there is one.

    Raises:
        LatentkitError: the checkpoint doesn't exist or is damaged, or the output can't be written.
    """
    from latentkit.training.checkpoint import pick_checkpoint, read_weights
    from latentkit.training.result import save_result

    path, chosen, is_average = pick_checkpoint(Path(run), step, weights)
    recipe = load_recipe(Path(run) / RECIPE)
    if not isinstance(recipe, TrainRecipe):
        raise TrainingError(
            f"{run}: expected the folder of a training run, its {RECIPE} has the task {recipe.task}"
        )
    target = Path(os.path.abspath(os.path.expanduser(output)))
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise TrainingError(f"{output} exists already; expected a missing or empty folder")
    registry, use = discover(), recipe.model
    config = registry.configure("encoder", use.use, use.with_, "model", recipe.origin)
    plugin = ConfiguredPlugin("model", "encoder", registry.find("encoder", use.use), config)
    model = _RecipeParts(recipe, registry, {"model": plugin}, "cpu").build("model")
    try:
        model.module.load_state_dict(read_weights(path, raw=not is_average))
    except RuntimeError as error:
        raise TrainingError(
            f"{path} belongs to another model than {recipe.origin} names. Restore that model."
            f" {error}"
        ) from error
    save_result(model, None, target)
    written = f"{output}: step {chosen} with {'averaged' if is_average else 'raw'} weights"
    if recipe.model.train == "decoder" or chosen == 0:  # then the encoder is as it was
        return written
    return f"{written}; its config has the statistics of latents from before training"


def _claim_output(recipe: TrainRecipe) -> contextlib.AbstractContextManager[None]:
    """Claim the output folder, unless the run is finished and nothing is written."""
    from latentkit.store.claims import hold_exclusive_claim
    from latentkit.training.result import finished_steps

    folder = _open_output(recipe)
    is_finished = finished_steps(folder.path) >= recipe.steps
    return contextlib.nullcontext() if is_finished else hold_exclusive_claim(folder, CLAIM)


def _follow_launcher(recipe: TrainRecipe) -> tuple[TrainRecipe, list[str]]:
    """Return the recipe with the launcher's precision if it names none, and remarks on ignored
    settings.
    """
    from latentkit.runtime.launcher import ignored_accumulation, launched_precision

    asked, passes, remarks = launched_precision(), ignored_accumulation(), []
    if asked and "precision" not in recipe.model_fields_set:
        recipe = recipe.model_copy(update={"precision": asked})
        remarks.append(f"the recipe names no precision, so the launcher's is used: {asked}")
    elif asked and asked != recipe.precision:
        own = f"the recipe for {recipe.precision}, which is used"
        remarks.append(f"the launcher asks for mixed precision {asked}, {own}")
    if passes not in (1, recipe.accumulate):
        own = f"the recipe for {recipe.accumulate}, which is used"
        remarks.append(f"the launcher asks for {passes} passes per step, {own}")
    return recipe, remarks


def _try_samples(recipe: TrainRecipe, source: Any, prepare: Any, folder: Path) -> list[str]:
    """Return warnings about samples that are tried before the first step of a run."""
    from latentkit.contracts import Source
    from latentkit.preparing.sample_trier import prepared_by
    from latentkit.runtime.bad_samples import BadSamplePolicy
    from latentkit.training.batches import SampleLocation
    from latentkit.training.try_samples import try_samples

    if not isinstance(source, Source) or not len(source) or (folder / "checkpoints").exists():
        return []
    view = (
        prepared_by(prepare[0])
        if isinstance(prepare, list)
        else lambda sample: prepare(sample, SampleLocation(0, 0))
    )
    return try_samples(source, view, BadSamplePolicy(recipe.on_bad_sample, recipe.max_bad))


@dataclass(frozen=True)
class _RecipeParts:
    """Builds what a recipe names."""

    recipe: TrainRecipe
    registry: Registry
    plugins: Mapping[str, ConfiguredPlugin]
    device: str

    @classmethod
    def checked(cls, recipe: TrainRecipe, device: Callable[[], str]) -> _RecipeParts:
        """Return the parts of a recipe, which is checked before the device is opened."""
        registry = discover()
        plugins = {plugin.where: plugin for plugin in check_recipe(recipe, registry)}
        return cls(recipe, registry, plugins, device())

    def build(self, where: str, model: Any = None) -> Any:
        """Return the object of one plugin, built for the model's input if a model is given. Its
        random weights follow from the seed.
        """
        import torch

        torch.manual_seed(self.recipe.seed)
        plugin = self.plugins[where]
        return plugin.provided.spec.build(plugin.config, self._context(model))

    def prepare(self, model: Any) -> list[Modality] | StoredMoments:
        """Return what prepares samples: modalities, or the latent dataset that the recipe names."""
        if self.recipe.latents is None:
            return self.modalities(model)
        return self.stored_moments(self.recipe.latents, model)

    def modalities(self, model: Any) -> list[Modality]:
        """Return one modality per size.

        Raises:
            RecipeError: the model doesn't accept the modality or sizes, or `sizes` is set but the
                modality has no option size.
        """
        plugin, context = self.plugins["modality"], self._context(model)
        if model.modality != plugin.provided.spec.name:
            wrong = (
                f"modality.use: the model takes {model.modality!r}, got"
                f" {plugin.provided.spec.name!r}"
            )
            raise RecipeError(f"{self.recipe.origin}: {wrong}")
        if not self.recipe.sizes:
            return [plugin.provided.spec.build(plugin.config, context)]
        use = self.recipe.modality
        configs = [
            self.registry.configure(
                "modality", use.use, {**use.with_, "size": size}, "modality", self.recipe.origin
            )
            for size in self.recipe.sizes
        ]
        return [plugin.provided.spec.build(config, context) for config in configs]

    def stored_moments(self, path: str, model: Any) -> StoredMoments:
        """Return what pairs the source with the latent dataset at `path`.

        Raises:
            FingerprintError: another encoder made it; the message names what differs.
            StoreError, TrainingError: the dataset can't be read or has no moments.
        """
        from latentkit.store.dataset_json import read_dataset
        from latentkit.store.fingerprint import different_parts
        from latentkit.store.open_folder import open_folder
        from latentkit.training.stored_moments import StoredMoments

        folder = open_folder(path)
        made_by = read_dataset(folder)["parts"]
        line = configured_encode_of(folder)
        # Weights are hashed in the dtype they compute in, so the model is opened with the
        # options of the dataset's encoder.
        own, theirs = self.plugins["model"], line.encoder
        same = {
            name: getattr(theirs.config, name)
            for name in ("dtype", "tiling")
            if name in type(theirs.config).model_fields
        }
        known = {
            name: value for name, value in same.items() if name in type(own.config).model_fields
        }
        candidate = replace(line, encoder=replace(own, config=own.config.model_copy(update=known)))
        opener = EncoderOpener(
            candidate.encoder,
            self.recipe.seed,
            self.recipe.base_dir,
            line.modality.provided.spec.name,
        )
        now = candidate.fingerprint_parts(opener(self.device))
        names = different_parts(made_by, now, "encoder.")
        if names:
            raise FingerprintError(
                f"{self.recipe.origin}: latents: {folder} was made by another encoder than the"
                f" model's: {', '.join(names)} differ; encode the source with this model first"
            )
        # Options that the recipe leaves open are those that the moments were made with.
        return StoredMoments(path, line.settled(made_by).open_modality(model))

    def losses(self, model: Any) -> list[WeightedLoss]:
        """Return all losses, each with a unique name, built for the model's input."""
        from latentkit.training.settings import WeightedLoss, WeightSchedule

        losses = []
        names = number_twins([loss.use for loss in self.recipe.losses])
        for number, (name, use) in enumerate(zip(names, self.recipe.losses, strict=True)):
            spec = self.plugins[f"losses[{number}]"].provided.spec
            assert isinstance(spec, LossSpec)
            schedule = WeightSchedule(**use.schedule.model_dump())
            optimizer = _optimizer(use.optimizer) if use.optimizer else None
            loss = self.build(f"losses[{number}]", model)
            losses.append(
                WeightedLoss(name, loss, use.weight, spec.role, use.adaptive, schedule, optimizer)
            )
        return losses

    def evaluation(self, wanted: Evaluate, model: Any, folder: Path) -> TrainEvaluation:
        """Return what measures the model while it trains, in the first process.

        Reconstructions to look at or listen to are written to evaluations/.

        Raises:
            RecipeError: the model or the modality doesn't support a metric, or evaluate.best isn't
                a metric with a better direction.
        """
        from latentkit.evaluation.evaluate import (
            EvaluateSettings,
            ModuleCodec,
            check_metrics,
            evaluate_model,
        )
        from latentkit.tasks.evaluate_task import open_metrics
        from latentkit.training.settings import TrainEvaluation

        plugin = self.plugins["modality" if wanted.modality is None else "evaluate.modality"]
        context = replace(self._context(model), modality=plugin.provided.spec.name)
        metrics = open_metrics(list(self.plugins.values()), context)
        modality, source = (
            plugin.provided.spec.build(plugin.config, context),
            self.build("evaluate.source"),
        )
        check_metrics(metrics, model.layout, "mean", True, modality)
        needs_decoder = any("decoder" in metric.needs for metric in metrics)
        module = getattr(model, "module", None)  # without one, training itself refuses
        if needs_decoder and module is not None and not hasattr(module, "decode"):
            raise EncoderError(
                f"{self.recipe.origin}: model: this model can't be evaluated while it trains: its"
                " module has no method decode"
            )
        better = {metric.name: metric.better for metric in metrics}
        if wanted.best is not None and not better.get(wanted.best):
            known = ", ".join(name for name, direction in better.items() if direction) or "none"
            where = f"{self.recipe.origin}: evaluate.best"
            expected = f"expected a metric with a better direction, here {known}"
            raise RecipeError(f"{where}: {expected}; got {wanted.best!r}")
        batch_size = wanted.batch_size or self.recipe.batch_size
        settings = EvaluateSettings(
            "mean", batch_size, self.recipe.seed, self.device, num_images=NUM_IMAGES
        )
        settings = replace(settings, keep_tensors=model.input.axes != "CHW")  # not images

        def measure(module: nn.Module, step: int) -> Mapping[str, float]:
            shown = replace(settings, show_always=hasattr(module, "decode"))
            codec = ModuleCodec(module, model.input, model.layout)
            found = evaluate_model(codec, source, modality, metrics, shown)
            write_reconstructions(found.gallery, modality, folder / "evaluations" / f"{step:08d}")
            return found.values()

        return TrainEvaluation(
            wanted.every, measure, wanted.best, better.get(wanted.best or "") != "lower"
        )

    def _context(self, model: Any = None) -> BuildContext:
        modality = "" if self.recipe.latents is not None else self.recipe.modality.use
        taken = None if model is None else model.input
        return BuildContext(self.device, self.recipe.seed, self.recipe.base_dir, taken, modality)


def write_reconstructions(gallery: Gallery, modality: Modality, path: Path) -> None:
    """Write a file to look at or listen to: a grid of images, or what the modality renders."""
    from latentkit.evaluation.images import save_grid
    from latentkit.tasks.preview import preview_suffix

    if gallery.pairs:
        path.parent.mkdir(parents=True, exist_ok=True)  # not every modality creates it
        modality.render(gallery.pairs, path.with_suffix(preview_suffix(modality)))
    else:
        save_grid(gallery, path.with_suffix(".png"))


def _settings(recipe: TrainRecipe) -> TrainSettings:
    """Return the settings of a training run from its recipe."""
    from latentkit.training.settings import TrainSettings

    alike = {field.name for field in fields(TrainSettings)} & set(TrainRecipe.model_fields)
    given = {name: getattr(recipe, name) for name in alike} | {
        "optimizer": _optimizer(recipe.optimizer)
    }
    return TrainSettings(
        **given,
        train=recipe.model.train,
        ema_decay=recipe.ema.decay if recipe.ema else None,
        checkpoint_every=recipe.output.checkpoint_every,
        keep=recipe.output.keep,
        trackers=recipe.log,
    )


def _optimizer(values: Optimizer) -> OptimizerSettings:
    from latentkit.training.settings import OptimizerSettings

    return OptimizerSettings(**values.model_dump())


def _open_run(recipe: TrainRecipe) -> Path:
    """Return the run's folder with its recipe.yaml. Only the first process writes it."""
    from latentkit.runtime.processes import run_on_first

    folder = _open_output(recipe)
    run_on_first(lambda: _claim(folder, recipe))
    return folder.path


def _open_output(recipe: TrainRecipe) -> LocalFolder:
    """Return the run's local folder."""
    from latentkit.store.local_folder import LocalFolder
    from latentkit.store.open_folder import open_folder

    folder = open_folder(recipe.output.path)
    if not isinstance(folder, LocalFolder):
        raise RecipeError(
            f"{recipe.origin}: output.path: {folder}: training writes to a local folder"
        )
    return folder


def _claim(folder: LocalFolder, recipe: TrainRecipe) -> None:
    """Write the recipe to the run's folder, after checking that the folder is empty or has the same
    run.
    """
    from latentkit.store.folder import ASIDE
    from latentkit.training.result import finished_steps

    text, written, before = dump_recipe(resolve(recipe)), None, {}
    if folder.exists(RECIPE):
        before = resolve(load_recipe(folder.path / RECIPE))
        written = dump_recipe(before)
    elif any(not name.startswith(".") and name != ASIDE for name in folder.top_names()):
        raise StoreError(
            f"{folder} contains other files and no {RECIPE}. Choose an empty folder for the run"
        )
    is_ours = (
        written is None or folder.read(RECIPE).decode() == written
    )  # otherwise it was written by hand
    is_begun = (folder.path / "checkpoints").exists() or (folder.path / "model").exists()
    different = list(find_differences(before, resolve(recipe))) if before else []
    if any(re.split(r"\W", line)[0] in SAME_RUN for line in different) and (
        is_begun or not is_ours
    ):
        raise TrainingError(
            f"{folder} contains another run: {'; '.join(different)}. Choose another output.path"
        )
    if finished_steps(folder.path) >= recipe.steps:
        for line in different:
            print(
                f"warning: {folder} is finished, so this changes nothing: {line}", file=sys.stderr
            )
    elif is_ours and written != text:
        folder.replace(RECIPE, text.encode())
        folder.discard_if_empty()

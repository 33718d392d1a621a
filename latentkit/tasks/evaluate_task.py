"""The evaluate task: builds what an evaluate recipe names, evaluates, and writes the results into
the output folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentkit._version import __version__
from latentkit.contracts import BuildContext, InputSpec, MetricSpec, TaskContext
from latentkit.errors import RecipeError
from latentkit.plugins import discover
from latentkit.recipe.schema import EvaluateRecipe, dump_recipe, resolve
from latentkit.tasks.check_recipe import ConfiguredPlugin, check_recipe, number_twins

if TYPE_CHECKING:
    from latentkit.evaluation.evaluate import EvaluateSettings, Evaluation, NamedMetric
    from latentkit.reading.dataset import LatentDataset

NUM_IMAGES = 6


@dataclass(frozen=True)
class EvaluateResult:
    """Result of an evaluate task, and its folder.

    Args:
        evaluation: None in all processes of a launch except the first.
    """

    folder: str
    evaluation: Evaluation | None


def run_evaluating(recipe: EvaluateRecipe, context: TaskContext) -> EvaluateResult:
    """Evaluate as the recipe says. Results replace those of an earlier evaluation in the same
    folder.

    Only the first process of a launch evaluates, because metrics such as rFID need all samples. The
    others return at once.

    Raises:
        LatentkitError: anything that the user can fix.
    """
    from latentkit.evaluation.output import claim_folder, write_evaluation
    from latentkit.runtime.device import choose_device
    from latentkit.store.open_folder import open_folder

    if not context.is_first_process:
        return EvaluateResult(recipe.output.path, None)
    device = choose_device(context.device)
    work = prepare_evaluation(recipe, device)
    folder = open_folder(recipe.output.path)
    claim_folder(folder, dump_recipe(resolve(recipe)))
    found = work()
    write_evaluation(folder, found, _describe(recipe, device))
    return EvaluateResult(str(folder), found)


def open_evaluation(recipe: EvaluateRecipe, remote: Collection[str]) -> None:
    """Open all that a run would open before its work, on the CPU; write nothing. With parts at keys
    `remote`, which may have to be downloaded, open nothing.
    """
    if not remote:
        prepare_evaluation(recipe, "cpu")


def prepare_evaluation(recipe: EvaluateRecipe, device: str) -> Callable[[], Evaluation]:
    """Check everything that can be checked before the work, and return a function that evaluates.
    Nothing is written.

    Raises:
        LatentkitError: something is missing or doesn't fit.
    """
    prepare = _prepare_model if recipe.latents is None else _prepare_latents
    work: Callable[[], Evaluation] = prepare(recipe, device)
    return work


def open_metrics(plugins: Sequence[ConfiguredPlugin], context: BuildContext) -> list[NamedMetric]:
    """Build the metrics among a recipe's plugins, each with a unique name.

    Args:
        context: with the model's `input`, and the name of the modality.

    Raises:
        LatentkitError: a plugin or a file that a metric needs isn't there.
    """
    from latentkit.evaluation.evaluate import NamedMetric

    used = [plugin for plugin in plugins if plugin.kind == "metric"]
    names = label_metrics([(one.provided.spec.name, dict(one.config)) for one in used])
    found = []
    for name, plugin in zip(names, used, strict=True):
        spec = plugin.provided.spec
        assert isinstance(spec, MetricSpec)
        met = {"modality"} if context.modality in spec.modalities else set()
        needs = [need for need in spec.needs if need not in met]
        metric = spec.build(plugin.config, context)
        found.append(NamedMetric(name, metric, needs, spec.name, spec.better))
    return found


def label_metrics(uses: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Return the name of each metric (given its name and options) in results: its own or its
    loss's, numbered if repeated.
    """
    return number_twins([str(options["use"]) if name == "loss" else name for name, options in uses])


def _prepare_model(recipe: EvaluateRecipe, device: str) -> Any:
    """Return what evaluates a model, after checking what can be checked."""
    from latentkit.contracts import Decodes
    from latentkit.evaluation.evaluate import evaluate_model
    from latentkit.runtime.source_remarks import print_remarks, read_remarks

    plugins = {plugin.where: plugin for plugin in check_recipe(recipe, discover())}

    def build(where: str, spec: InputSpec | None = None) -> Any:
        context = BuildContext(
            device, recipe.seed, recipe.base_dir, spec, plugins["modality"].provided.spec.name
        )
        return plugins[where].provided.spec.build(plugins[where].config, context)

    source, model = build("source"), build("model")
    wanted, got = model.modality, plugins["modality"].provided.spec.name
    if wanted != got:
        raise RecipeError(f"{recipe.origin}: modality.use: the model takes {wanted!r}, got {got!r}")
    modality = build("modality", model.input)
    context = BuildContext(device, recipe.seed, recipe.base_dir, model.input, got)
    metrics = open_metrics(list(plugins.values()), context)
    _check(recipe, metrics, model.layout, recipe.posterior, isinstance(model, Decodes), modality)
    print_remarks(read_remarks(source))
    return lambda: evaluate_model(model, source, modality, metrics, _settings(recipe, device))


def _prepare_latents(recipe: EvaluateRecipe, device: str) -> Any:
    """Return what evaluates a latent dataset."""
    from latentkit.evaluation.evaluate import evaluate_latents

    plugins = check_recipe(recipe, discover())
    assert recipe.latents is not None
    dataset = _open_latents(recipe.latents)
    metrics = open_metrics(plugins, BuildContext(device, recipe.seed, recipe.base_dir))
    _check(recipe, metrics, dataset.layout, recipe.posterior, False, None, dataset.has_moments)
    return lambda: evaluate_latents(dataset, metrics, _settings(recipe, device))


def _check(recipe: EvaluateRecipe, *arguments: Any) -> None:
    """Call `check_metrics`; add the recipe's file to every line of its error."""
    from latentkit.evaluation.evaluate import check_metrics

    try:
        check_metrics(*arguments)
    except RecipeError as error:
        lines = [f"{recipe.origin}: {line}" for line in str(error).splitlines()]
        raise RecipeError("\n".join(lines)) from error


def _open_latents(path: str) -> LatentDataset:
    from latentkit.reading.dataset import open_dataset

    dataset = open_dataset(path)
    return open_dataset(path, posterior="moments") if dataset.has_moments else dataset


def _settings(recipe: EvaluateRecipe, device: str) -> EvaluateSettings:
    """Return the evaluation's settings from its recipe."""
    from latentkit.evaluation.evaluate import EvaluateSettings
    from latentkit.runtime.bad_samples import BadSamplePolicy

    bad = BadSamplePolicy(recipe.on_bad_sample, recipe.max_bad)
    return EvaluateSettings(
        recipe.posterior,
        recipe.batch_size,
        recipe.seed,
        device,
        bad,
        NUM_IMAGES,
        show_progress=True,
    )


def _describe(recipe: EvaluateRecipe, device: str) -> dict[str, Any]:
    """Return what was evaluated, and with what."""
    import torch

    if recipe.model is not None:
        model = recipe.model.with_.get("model") or recipe.model.with_.get("config")
        subject = f"{recipe.model.use} {model}" if model else recipe.model.use
    else:
        subject = str(recipe.latents)
    source = {} if recipe.source is None else {"source": recipe.source.model_dump(by_alias=True)}
    settings = {
        "posterior": recipe.posterior,
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "device": device,
    }
    return {
        "evaluated": subject,
        **source,
        **settings,
        "latentkit": __version__,
        "torch": torch.__version__,
    }

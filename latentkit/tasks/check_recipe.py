"""Finds and configures everything that a recipe names, without building it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentkit.contracts import LossSpec
from latentkit.errors import LatentkitError, PluginError, RecipeError
from latentkit.plugins import Provided, Registry
from latentkit.recipe.schema import Recipe, TrainRecipe
from latentkit.runtime.step_ranges import describe_gap

USUAL_KL_WEIGHT = 1e-6
"""Used with l1 or mse by Rombach et al. 2022, "High-Resolution Image Synthesis with Latent
Diffusion Models", and later work.
"""
UNUSUAL_FACTOR = 1000.0
PER_VALUE = "weights are per input value: KL in nats divided by the number of input values"


@dataclass(frozen=True)
class ConfiguredPlugin:
    """A plugin that a recipe uses, ready to be built.

    Args:
        where: the recipe key that names it, such as "losses[1]".
        kind: kind of the plugin, such as "loss".
        provided: its spec and distribution.
    """

    where: str
    kind: str
    provided: Provided
    config: Any


def check_recipe(recipe: Recipe, registry: Registry) -> list[ConfiguredPlugin]:
    """Return every plugin that the recipe uses, in its order, found and configured.

    Raises:
        PluginError: a plugin is missing, or several have its name.
        RecipeError: a plugin refuses its options (one line per problem of all plugins), or the
            losses of a training run can't be combined.
    """
    configured: list[ConfiguredPlugin] = []
    errors: list[LatentkitError] = []
    for kind, where, use in recipe.uses():
        try:
            config = registry.configure(kind, use.use, use.with_, where, recipe.origin)
            configured.append(ConfiguredPlugin(where, kind, registry.find(kind, use.use), config))
        except (PluginError, RecipeError) as err:
            errors.append(err)
    if errors:
        raise type(errors[0])("\n".join(str(error) for error in errors)) from errors[0]
    if isinstance(recipe, TrainRecipe):
        _check_losses(recipe, {plugin.where: plugin for plugin in configured})
    return configured


def _check_losses(recipe: TrainRecipe, plugins: Mapping[str, ConfiguredPlugin]) -> None:
    """Check that in every step a reconstruction loss is active, and that every loss is active at
    some step.
    """
    spans = []
    for number, loss in enumerate(recipe.losses):
        where = f"{recipe.origin}: losses[{number}]"
        spec = plugins[f"losses[{number}]"].provided.spec
        role = spec.role if isinstance(spec, LossSpec) else ""
        if loss.schedule.start >= recipe.steps:
            late = (
                f"{loss.use} would start after {loss.schedule.start} steps, but the run has"
                f" {recipe.steps}"
            )
            raise RecipeError(f"{where}.schedule.start: {late}")
        if loss.optimizer is not None and role != "adversarial":
            raise RecipeError(
                f"{where}.optimizer: {loss.use} has no discriminator, so this has no effect. Leave"
                " it out"
            )
        if role == "reconstruction" and not loss.adaptive and loss.weight:
            spans.append((loss.schedule.start, loss.schedule.until))
    if gap := describe_gap(spans, recipe.steps):
        raise RecipeError(f"{recipe.origin}: {gap}")


def number_twins(names: Sequence[str]) -> list[str]:
    """Return the names, with a number appended to repeated ones: l1-1, l1-2."""
    return [
        name if names.count(name) == 1 else f"{name}-{names[: number + 1].count(name)}"
        for number, name in enumerate(names)
    ]


def warn_of_unusual_weights(recipe: Recipe) -> list[str]:
    """Return a warning for each `kl` whose weight is at least 1,000 times larger or smaller than
    usual. It may be intended, but probably has another unit.

    A `kl` with a target or an adaptive weight is ignored, because its weight means something else.
    """
    losses = recipe.losses if isinstance(recipe, TrainRecipe) else []
    fixed = [loss for loss in losses if loss.weight > 0 and not loss.adaptive]
    likelihoods = [loss for loss in fixed if loss.use.endswith("-nll")]
    distances = [loss for loss in fixed if loss.use in ("l1", "mse")]
    warnings = []
    for number, loss in enumerate(losses):
        if (
            loss.use != "kl"
            or loss not in fixed
            or loss.with_.get("target") is not None
            or not likelihoods + distances
        ):
            continue
        beside, is_likelihood = (likelihoods + distances)[0], bool(likelihoods)
        ratio = loss.weight / beside.weight / (1.0 if is_likelihood else USUAL_KL_WEIGHT)
        if not 1 / UNUSUAL_FACTOR < ratio < UNUSUAL_FACTOR:
            usual = (
                "1 is the ELBO" if is_likelihood else f"latent diffusion uses {USUAL_KL_WEIGHT:g}"
            )
            here = f"kl has weight {loss.weight:g} and {beside.use} {beside.weight:g}"
            warnings.append(
                f"{recipe.origin}: losses[{number}].weight: {here}; {usual} ({PER_VALUE})"
            )
    return warnings

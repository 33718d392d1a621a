"""Everything a recipe names, found and configured, with nothing built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from latentkit.errors import LatentkitError, PluginError, RecipeError
from latentkit.plugins import Provided, Registry
from latentkit.recipe import Recipe


@dataclass(frozen=True)
class ConfiguredPlugin:
    """A plugin that a recipe uses, ready to be built.

    Args:
        where: key of the recipe that names it, such as "losses[1]".
        kind: of the plugin, such as "loss".
        provided: its spec and the distribution it is from.
        config: the validated options.
    """

    where: str
    kind: str
    provided: Provided
    config: Any


def check_recipe(recipe: Recipe, registry: Registry) -> list[ConfiguredPlugin]:
    """Every plugin the recipe uses, in its order, found and configured.

    Raises:
        PluginError: a plugin is missing, or several have its name.
        RecipeError: a plugin refuses its options; one line per problem of all plugins together.
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
    return configured

"""Build the plugin objects that a recipe names. Loads no torch."""

from __future__ import annotations

from typing import Any

from latentkit.contracts import BuildContext, InputSpec, Recipe
from latentkit.plugins.registry import discover


def build_part(
    recipe: Recipe,
    where: str,
    device: str = "cpu",
    input: InputSpec | None = None,
    modality: str = "",
) -> Any:
    """Build and return the plugin object that a recipe names at the key `where`, such as "source".

    Args:
        device, input, modality: see `BuildContext`.

    Raises:
        PluginError: no plugin has the name, or several have.
        RecipeError: the plugin refuses the options.
        KeyError: `Recipe.uses` has no such key.
    """
    kind, use = {key: (kind, use) for kind, key, use in recipe.uses()}[where]
    registry = discover()
    config = registry.configure(kind, use.use, use.with_, where, recipe.origin)
    context = BuildContext(device, recipe.seed, recipe.base_dir, input, modality)
    return registry.find(kind, use.use).spec.build(config, context)

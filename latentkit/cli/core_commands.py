"""Core's commands, as plugins declare theirs. Loads no pydantic, so `latentkit --help` is quick."""

from __future__ import annotations

from latentkit.cli import (
    dataset_commands,
    hub_commands,
    import_commands,
    plugin_commands,
    recipe_commands,
    use_commands,
)
from latentkit.contracts import CommandSpec
from latentkit.hooks import hookimpl


@hookimpl
def latentkit_commands() -> list[CommandSpec]:
    """Core's commands, in the order in which `--help` lists them."""
    groups = (
        recipe_commands,
        import_commands,
        dataset_commands,
        use_commands,
        hub_commands,
        plugin_commands,
    )
    return [command for group in groups for command in group.COMMANDS]

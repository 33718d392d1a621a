"""Core's commands, as plugins declare theirs. Loads no pydantic, so `latentkit --help` is quick."""

from __future__ import annotations

from latentkit.cli import dataset_commands, plugin_commands, recipe_commands
from latentkit.cli.import_command import IMPORT
from latentkit.contracts import CommandSpec
from latentkit.hooks import hookimpl


@hookimpl
def latentkit_commands() -> list[CommandSpec]:
    """All of them, in the order in which `--help` lists them."""
    first, *others = recipe_commands.COMMANDS
    return [
        first,
        IMPORT,
        *others,
        *dataset_commands.COMMANDS,
        *plugin_commands.COMMANDS,
    ]

"""Core's commands, as plugins declare theirs. Loads no torch."""

from __future__ import annotations

from latentkit.cli.main import COMMANDS
from latentkit.contracts import CommandSpec
from latentkit.hooks import hookimpl


@hookimpl
def latentkit_commands() -> list[CommandSpec]:
    """All of them."""
    return [CommandSpec(*command) for command in COMMANDS.values()]

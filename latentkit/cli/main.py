"""Command-line entry point.

Exit codes: 0 success, 1 an internal error (or damage that `verify` found), 2 an error that the user
can fix, 130 or 143 stopped by a signal.

Every command is a `CommandSpec` that a hook `latentkit_commands` returns. Plugins are loaded only
where the first word is not a command of core, so that `latentkit --help` and core's commands start
quickly. `latentkit plugins` lists the commands of plugins too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from latentkit._version import __version__
from latentkit.cli.core_commands import latentkit_commands
from latentkit.cli.plugin_commands import insert_show
from latentkit.cli.shared_arguments import printable
from latentkit.contracts import CommandSpec
from latentkit.errors import InterruptedRunError, LatentkitError
from latentkit.runtime.stopping import SIGNALS, end_run_on

COMMANDS = {command.name: command for command in latentkit_commands()}
"""Core's commands by name, in the order in which `--help` lists them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if isinstance(sys.stdout, TextIOWrapper):  # pipes of Windows may not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    # Another package of the name latentkit may have replaced our __init__.py.
    if "LatentDataset" not in getattr(sys.modules["latentkit"], "__all__", ()):
        from latentkit.runtime.other_distribution import explain_lost_files

        print(f"latentkit: {explain_lost_files()}", file=sys.stderr)
        return 2
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words:
        parser().print_help()
        return 0
    try:
        return _run_command(words)
    except InterruptedRunError as error:
        print(f"latentkit: {error}", file=sys.stderr)
        return error.exit_code
    except LatentkitError as error:
        print(f"latentkit: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output (head, less) went away.
        sys.stderr.close()
        return 0


def _run_command(words: Sequence[str]) -> int:
    """Parse the words of a command line, run the command, and return its exit code."""
    if words[0].startswith("-") or words[0] in COMMANDS:
        options = parser().parse_args(insert_show(words))
    else:
        options = _parser_of(_find_command(words[0])).parse_args(words[1:])
    end_run_on(*SIGNALS)
    code: int = options.command(options)
    return code


def _find_command(name: str) -> CommandSpec:
    """Return a plugin's command.

    Raises:
        PluginError: no plugin has the command, or several have.
        LatentkitError: the name is a task's, which has no command.
    """
    from latentkit.plugins import discover

    registry = discover()
    if name in registry.names("task") and name not in registry.names("command"):
        raise LatentkitError(
            f"{name} is a task, not a command; write `task: {name}` in a recipe and run the recipe"
            " with `latentkit run RECIPE`. `latentkit recipes` lists recipes to start from"
        )
    spec = registry.find("command", name).spec
    assert isinstance(spec, CommandSpec)
    return spec


def parser() -> argparse.ArgumentParser:
    """Return the parser of core's commands; a test lists every option, so that none is lost."""
    top = argparse.ArgumentParser(
        "latentkit",
        description="Latent datasets for latent diffusion, and the autoencoders that make them.",
    )
    top.add_argument("--version", action="version", version=f"latentkit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        subparser = commands.add_parser(
            command.name, help=command.summary, description=_sentence(command.summary)
        )
        _add_arguments(subparser, command)
    return top


def _parser_of(command: CommandSpec) -> argparse.ArgumentParser:
    """Return the parser of one command of a plugin."""
    parser = argparse.ArgumentParser(
        f"latentkit {command.name}", description=_sentence(command.summary)
    )
    _add_arguments(parser, command)
    return parser


def _add_arguments(parser: argparse.ArgumentParser, command: CommandSpec) -> None:
    parser.set_defaults(command=command.run)
    command.add_arguments(parser)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."

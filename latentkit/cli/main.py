"""Arguments to one call; exit codes.

0 done, 1 our fault, 2 yours to fix, 130 or 143 stopped by a signal.

Every command is a `CommandSpec` that a hook `latentkit_commands` gives. Core's hook is asked first,
and plugins are looked for where the first word is none of core's: `latentkit --help` and core's
commands load no plugin, and so stay quick; `latentkit plugins` lists the commands of plugins too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from types import FrameType

from latentkit._version import __version__
from latentkit.cli.core_commands import latentkit_commands
from latentkit.cli.plugin_commands import spell_out
from latentkit.cli.shared_arguments import printable
from latentkit.contracts import CommandSpec
from latentkit.errors import InterruptedRunError, LatentkitError

COMMANDS = {command.name: command for command in latentkit_commands()}
"""Core's own, in the order in which `--help` lists them."""


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
        return _run(words)
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


def _run(words: Sequence[str]) -> int:
    if words[0].startswith("-") or words[0] in COMMANDS:
        options = parser().parse_args(spell_out(words))
    else:
        options = _parser_of(_find_command(words[0])).parse_args(words[1:])
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    code: int = options.command(options)
    return code


def _find_command(name: str) -> CommandSpec:
    """The command of a plugin.

    Raises:
        PluginError: no plugin has it, or several have.
        LatentkitError: it is a task, which has no command.
    """
    from latentkit.plugins import discover

    registry = discover()
    if name in registry.names("task") and name not in registry.names("command"):
        raise LatentkitError(
            f"there is no command {name}; a recipe with task: {name} is run by `latentkit run"
            " RECIPE`; `latentkit recipes` lists some to begin with"
        )
    spec = registry.find("command", name).spec
    assert isinstance(spec, CommandSpec)
    return spec


def _stop(number: int, frame: FrameType | None) -> None:
    """Stop in good order. Launchers send several signals; one is enough."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise InterruptedRunError("stopped" if number == signal.SIGINT else "terminated", 128 + number)


def parser() -> argparse.ArgumentParser:
    """Core's commands and options; a test freezes them."""
    top = argparse.ArgumentParser(
        "latentkit",
        description="Latent datasets for latent diffusion, and the autoencoders that make them.",
    )
    top.add_argument("--version", action="version", version=f"latentkit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        below = commands.add_parser(
            command.name, help=command.summary, description=_sentence(command.summary)
        )
        _fill(below, command)
    return top


def _parser_of(command: CommandSpec) -> argparse.ArgumentParser:
    """The parser of a plugin's command alone."""
    alone = argparse.ArgumentParser(
        f"latentkit {command.name}", description=_sentence(command.summary)
    )
    _fill(alone, command)
    return alone


def _fill(parser: argparse.ArgumentParser, command: CommandSpec) -> None:
    parser.set_defaults(command=command.run)
    command.add_arguments(parser)


def _sentence(summary: str) -> str:
    return f"{summary[0].upper()}{summary[1:]}."

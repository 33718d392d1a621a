"""The command `plugins`: list plugins, describe one, make a new one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from latentkit.cli.shared_arguments import printable
from latentkit.contracts import CommandSpec

SHOW = "show"
"""The hidden sub-command that `plugins NAME` becomes: argparse can't take both NAME and `new`."""


def insert_show(words: Sequence[str]) -> list[str]:
    """Return a command line's words, with `plugins NAME` changed to `plugins show NAME`."""
    names = [number for number, word in enumerate(words) if not word.startswith("-")][1:]
    if words[0] != "plugins" or not names or words[names[0]] == "new":
        return list(words)
    return [*words[: names[0]], SHOW, *words[names[0] :]]


def _add_plugins(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")
    below = command.add_subparsers(metavar="[[KIND] NAME | new]")
    show = below.add_parser(SHOW, prog=f"{command.prog} [KIND] NAME", add_help=False)
    show.add_argument("names", nargs="+")
    show.add_argument("--json", action="store_true", default=argparse.SUPPRESS)
    show.set_defaults(command=_show_plugin)
    summary = "make a plugin package that passes its own tests"
    new = below.add_parser("new", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    new.set_defaults(command=_new_plugin)
    new.add_argument("name", metavar="NAME", help="as recipes will use it, such as my-encoder")
    new.add_argument(
        "--kind",
        required=True,
        metavar="KIND",
        help="source, modality, encoder, loss, executor, exporter, metric, task or command",
    )
    new.add_argument(
        "--path",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder to make it in (default: the working directory)",
    )


def _plugins(options: argparse.Namespace) -> int:
    from latentkit.cli.plugin_listing import plugins_as_json, plugins_as_text
    from latentkit.plugins import discover

    registry = discover()
    print(plugins_as_json(registry) if options.json else plugins_as_text(registry))
    return 0


def _show_plugin(options: argparse.Namespace) -> int:
    from latentkit.cli.plugin_listing import plugin_as_json, plugin_as_text
    from latentkit.plugins import discover

    show = plugin_as_json if options.json else plugin_as_text
    print(printable(show(discover(), options.names)))
    return 0


def _new_plugin(options: argparse.Namespace) -> int:
    from latentkit.plugins.new_plugin import describe_new, new_plugin

    print(printable(describe_new(new_plugin(options.name, options.kind, options.path))))
    return 0


COMMANDS = (
    CommandSpec(
        "plugins",
        "list plugins and their problems; describe one; or make a new one",
        _add_plugins,
        _plugins,
    ),
)

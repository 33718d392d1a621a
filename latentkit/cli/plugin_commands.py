"""The commands about what is there to use: `plugins` and `recipes`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from latentkit.cli.arguments import Command, printable

SHOW = "show"
"""What `plugins NAME` is to argparse, which takes a command below another or a name, not both."""


def spell_out(words: Sequence[str]) -> list[str]:
    """The words of a command line, with `plugins NAME` as the command below `plugins` that it is.
    """
    names = [number for number, word in enumerate(words) if not word.startswith("-")][1:]
    if words[0] != "plugins" or not names or words[names[0]] == "new":
        return list(words)
    return [*words[: names[0]], SHOW, *words[names[0] :]]


def _add_plugins(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for programs")
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
        help="source, modality, encoder, loss, executor, exporter, metric or command",
    )
    new.add_argument(
        "--path",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="folder to make it in (default: the working directory)",
    )


def _add_recipes(command: argparse.ArgumentParser) -> None:
    summary = "write a recipe to a folder, to run or to change it"
    copy = command.add_subparsers(metavar="[copy]").add_parser(
        "copy", help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    copy.set_defaults(command=_copy_recipe)
    copy.add_argument("name", metavar="NAME", help="as listed, such as quickstart")
    copy.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path("recipes"),
        help="folder to write it to (default: recipes)",
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


def _recipes(options: argparse.Namespace) -> int:
    from latentkit.cli.shipped_recipes import list_recipes

    print(list_recipes())
    return 0


def _copy_recipe(options: argparse.Namespace) -> int:
    from latentkit.cli.shipped_recipes import copy_recipe
    from latentkit.runtime.paths import in_shell

    recipe, *beside = copy_recipe(options.name, options.folder)
    print(printable("\n".join(f"wrote {path}" for path in (recipe, *beside))))
    command = "latentkit run" if recipe.suffix == ".yaml" else "python"
    print(printable(f"  run it  {command} {in_shell(recipe)}"))
    return 0


COMMANDS = (
    Command(
        "plugins",
        "list plugins, and what is wrong with any; say all about one; or make a new one",
        _add_plugins,
        _plugins,
    ),
    Command(
        "recipes",
        "list the recipes that come with the package, or copy one",
        _add_recipes,
        _recipes,
    ),
)

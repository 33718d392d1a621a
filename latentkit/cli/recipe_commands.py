"""The commands about recipes: `encode`, `run`, `check`, `recipes`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentkit.cli.shared_arguments import (
    add_device,
    add_devices,
    add_set,
    printable,
    split_devices,
)
from latentkit.contracts import CommandSpec
from latentkit.errors import InterruptedRunError

if TYPE_CHECKING:
    from latentkit.contracts import Recipe, TaskContext


def _add_encode(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder or file, owner/name on the hub, or the name of a source plugin",
    )
    command.add_argument("output", metavar="OUT", help="folder of the latent dataset")
    command.add_argument(
        "--encoder",
        metavar="E",
        help="a folder or file, a hub id, or the name of an encoder plugin (default: tiny-kl)",
    )
    command.add_argument("--size", type=int, metavar="N", help="side of the images, in pixels")
    add_set(command)
    add_device(command)
    add_devices(command)


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    add_set(command)
    add_device(command)
    add_devices(command)
    command.add_argument(
        "--dry-run", action="store_true", help="print what would be encoded, and write nothing"
    )
    command.add_argument(
        "--prune",
        action="store_true",
        help="drop samples that are gone from the source, even if most of them are",
    )
    command.add_argument(
        "--retry-skipped",
        action="store_true",
        help="try to encode skipped samples again",
    )


def _add_check(command: argparse.ArgumentParser) -> None:
    command.add_argument("recipe", metavar="RECIPE", help="a YAML file")
    add_set(command)


def _add_recipes(command: argparse.ArgumentParser) -> None:
    summary = "copy a recipe to a folder, to run or change it"
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


def _encode(options: argparse.Namespace) -> int:
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import parse_recipe
    from latentkit.tasks.recipe_from_arguments import encode_recipe

    values, remarks = encode_recipe(
        options.source, options.output, options.encoder, options.size, options.set
    )
    for remark in remarks:
        print(remark, file=sys.stderr)
    recipe = parse_recipe(values, "encode", Path.cwd(), options.set)
    return run_parsed(
        recipe, TaskContext(device=options.device, devices=split_devices(options), fits=True)
    )


def _run(options: argparse.Namespace) -> int:
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import load_recipe

    context = TaskContext(
        options.dry_run,
        options.prune,
        options.retry_skipped,
        options.device,
        split_devices(options),
    )
    return run_parsed(load_recipe(options.recipe, options.set), context)


def run_parsed(recipe: Recipe, context: TaskContext) -> int:
    """Run a recipe and print its result. If the run is stopped, say how to continue."""
    from latentkit.cli.closing_words import how_to_continue
    from latentkit.tasks.encode_task import is_first_process
    from latentkit.tasks.run_recipe import find_task, run_recipe

    try:
        result = run_recipe(recipe, context)
    except InterruptedRunError as error:
        raise InterruptedRunError(f"{error}; {how_to_continue(recipe)}", error.exit_code) from None
    if is_first_process():
        print(printable(result if context.dry_run else find_task(recipe).report(result)))
    return 0


def _check(options: argparse.Namespace) -> int:
    from latentkit.plugins import discover
    from latentkit.recipe.schema import load_recipe
    from latentkit.runtime.other_distribution import explain_other, find_other_version
    from latentkit.tasks.check_recipe import check_recipe, warn_of_unusual_weights

    recipe = load_recipe(options.recipe, options.set)
    for plugin in check_recipe(recipe, discover()):
        print(
            f"{plugin.where}: {plugin.kind} {plugin.provided.spec.name}"
            f" ({plugin.provided.distribution} {plugin.provided.version})"
        )
    for warning in warn_of_unusual_weights(recipe):
        print(f"warning: {warning}")
    if (other := find_other_version()) is not None:
        print(f"warning: {explain_other(other)}")
    from latentkit.tasks.run_recipe import open_parts

    if not_checked := open_parts(recipe):
        print(not_checked)
    print(f"{options.recipe}: a valid {recipe.task} recipe")
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
    CommandSpec(
        "encode",
        "encode a source into a latent dataset, without writing a recipe",
        _add_encode,
        _encode,
    ),
    CommandSpec("run", "run a recipe; run it again to continue where it stopped", _add_run, _run),
    CommandSpec(
        "check",
        "validate a recipe and open all that it names, without writing anything",
        _add_check,
        _check,
    ),
    CommandSpec(
        "recipes",
        "list the recipes that come with the package, or copy one",
        _add_recipes,
        _recipes,
    ),
)

"""The command `import`. Loads no pydantic before it runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from latentkit.cli.shared_arguments import add_set
from latentkit.contracts import CommandSpec
from latentkit.errors import LatentkitError

SUMMARY = "make a latent dataset of another program's cached latents, without encoding again"


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument("path", metavar="PATH", help="folder of the cache")
    command.add_argument("output", metavar="OUT", help="folder of the latent dataset")
    command.add_argument(
        "--from",
        dest="source",
        default="latent-files",
        metavar="FORMAT",
        help="name of a source of latents: latent-files (the default), latent-tars, or one of"
        " latentkit-trainers, such as kohya or mar",
    )
    command.add_argument(
        "--encoder",
        metavar="E",
        help="the encoder that made them, as latentkit encode takes it (default: unknown)",
    )
    command.add_argument(
        "--normalized",
        action="store_true",
        default=None,
        help="the cache holds (raw - shift) * scale, not raw latents",
    )
    command.add_argument(
        "--scale", metavar="S", help="a number, or one per channel with commas, such as 0.18215"
    )
    command.add_argument("--shift", metavar="S", help="the same; needs --scale (default: 0)")
    command.add_argument(
        "--downscale",
        metavar="N",
        help="input size over latent size, such as 8, or one per axis, such as 4,8,8",
    )
    add_set(command)


def _numbers(options: argparse.Namespace, name: str) -> Any:
    """Return the number or numbers of an option; None where it isn't given."""
    text = getattr(options, name)
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise LatentkitError(f"--{name} {text}: expected a number, or several: 1,2,3") from error
    if name == "scale" and 0.0 in numbers:
        raise LatentkitError(f"--scale {text}: expected numbers other than 0")
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _downscale(options: argparse.Namespace) -> Any:
    numbers = _numbers(options, "downscale")
    several = numbers if isinstance(numbers, tuple) else (numbers,)
    if numbers is not None and min(several) <= 0:
        raise LatentkitError(f"--downscale {options.downscale}: expected numbers above 0")
    if isinstance(numbers, float) and numbers.is_integer():
        return int(numbers)
    return numbers


def _import(options: argparse.Namespace) -> int:
    from latentkit.cli.recipe_commands import run_parsed
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import parse_recipe
    from latentkit.tasks.import_latents import ToldLatents, import_recipe

    told = ToldLatents(
        options.encoder,
        options.normalized,
        _numbers(options, "shift"),
        _numbers(options, "scale"),
        _downscale(options),
    )
    values = import_recipe(options.path, options.output, options.source, told, options.set)
    recipe = parse_recipe(values, "import", Path.cwd(), options.set)
    return run_parsed(recipe, TaskContext(device="cpu"))


COMMANDS = (CommandSpec("import", SUMMARY, _add_import, _import),)

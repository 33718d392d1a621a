"""The commands that make something new from a latent dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentkit.cli.recipe_commands import run_parsed
from latentkit.cli.shared_arguments import add_device, add_set
from latentkit.contracts import CommandSpec

if TYPE_CHECKING:
    from collections.abc import Mapping


def _add_sample(command: argparse.ArgumentParser) -> None:
    _add_places(command)
    command.add_argument(
        "--count", type=int, default=64, metavar="N", help="new items (default: 64)"
    )
    command.add_argument(
        "--sampler",
        default="auto",
        metavar="S",
        help=(
            "normal, channel-gaussian, spatial-gaussian, low-rank or mixture (default: the one"
            " that fits best)"
        ),
    )
    command.add_argument(
        "--by", metavar="COLUMN", help="equally many items of each value of an attribute"
    )
    _add_rest(command)


def _add_places(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="folder of the latent dataset")
    command.add_argument("output", metavar="OUT", help="folder to write")


def _add_rest(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of every random draw")
    add_set(command)
    add_device(command)


def _sample(options: argparse.Namespace) -> int:
    chosen = {"count": options.count, "sampler": options.sampler, "by": options.by}
    return _run(options, "sample", chosen)


def _add_interpolate(command: argparse.ArgumentParser) -> None:
    _add_places(command)
    command.add_argument(
        "--between", nargs="+", metavar="KEY", required=True, help="two or more keys, in order"
    )
    command.add_argument(
        "--steps", type=int, default=9, metavar="N", help="points from one to the next (default: 9)"
    )
    command.add_argument(
        "--method",
        default="spherical",
        metavar="M",
        help="linear, spherical or neighbors (default: spherical)",
    )
    _add_rest(command)


def _interpolate(options: argparse.Namespace) -> int:
    chosen = {"between": options.between, "steps": options.steps, "method": options.method}
    return _run(options, "interpolate", chosen)


def _add_augment(command: argparse.ArgumentParser) -> None:
    _add_places(command)
    command.add_argument(
        "--label", default="label", metavar="COLUMN", help="attribute that is the class"
    )
    command.add_argument(
        "--test", metavar="DATASET", help="latent dataset of test items, which mustn't be used"
    )
    _add_rest(command)


def _augment(options: argparse.Namespace) -> int:
    return _run(options, "augment", {"label": options.label, "test": options.test})


def _add_augment_study(command: argparse.ArgumentParser) -> None:
    _add_places(command)
    command.add_argument(
        "--test", metavar="DATASET", required=True, help="latent dataset of test items"
    )
    command.add_argument(
        "--label", default="label", metavar="COLUMN", help="attribute that is the class"
    )
    command.add_argument(
        "--sizes", type=int, nargs="+", default=[10, 50, 200], metavar="N", help="items per class"
    )
    _add_rest(command)


def _augment_study(options: argparse.Namespace) -> int:
    chosen = {"test": options.test, "label": options.label, "sizes": options.sizes}
    return _run(options, "augment-study", chosen)


def _add_score(command: argparse.ArgumentParser) -> None:
    _add_places(command)
    command.add_argument(
        "--clean", metavar="DATASET", help="latent dataset of usual items, to set thresholds by"
    )
    command.add_argument(
        "--label", metavar="COLUMN", help="attribute that says which items are unusual"
    )
    command.add_argument(
        "--unusual", nargs="+", metavar="VALUE", default=(), help="its values of unusual items"
    )
    _add_rest(command)


def _score(options: argparse.Namespace) -> int:
    chosen = {"clean": options.clean, "label": options.label, "unusual": [*options.unusual]}
    return _run(options, "score", chosen)


def _run(options: argparse.Namespace, task: str, chosen: Mapping[str, Any]) -> int:
    from latentkit.contracts import TaskContext
    from latentkit.recipe.schema import parse_recipe

    places = {"latents": options.dataset, "output": {"path": options.output}}
    values = {"task": task, **places, **chosen, "seed": options.seed}
    recipe = parse_recipe(values, task, Path.cwd(), options.set)
    return run_parsed(recipe, TaskContext(device=options.device))


COMMANDS = (
    CommandSpec(
        "sample", "draw new items from a latent dataset, and decode them", _add_sample, _sample
    ),
    CommandSpec(
        "interpolate",
        "decode the way from one item of a latent dataset to another",
        _add_interpolate,
        _interpolate,
    ),
    CommandSpec(
        "augment",
        "make more items for each class of a small latent dataset",
        _add_augment,
        _augment,
    ),
    CommandSpec(
        "augment-study",
        "say whether such items help a classifier",
        _add_augment_study,
        _augment_study,
    ),
    CommandSpec(
        "score", "say how unusual each item of a latent dataset is", _add_score, _score
    ),
)

"""A plugin of the kinds that version 3 of the contract added: metrics, a task and commands."""

import argparse
from collections.abc import Collection, Iterator
from typing import Any, Literal

from pydantic import Field

from latentkit.contracts import (
    BuildContext,
    CommandSpec,
    Config,
    Figure,
    Measured,
    MetricBatch,
    MetricSetting,
    MetricSpec,
    Recipe,
    TaskContext,
    TaskSpec,
    Use,
)
from latentkit.errors import LatentkitError
from latentkit.hooks import hookimpl
from latentkit.kit import build_part

requires_contract = 3


class OffsetConfig(Config):
    """Metric `offset`."""

    factor: float = Field(1.0, gt=0, description="what the mean error is multiplied by")


class Offset:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def start(self, setting: MetricSetting) -> None:
        self.values: list[float] = []

    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        self.values += ((output - inputs).flatten(1).mean(1) * self.factor).tolist()

    def finish(self) -> Measured:
        mean = sum(self.values) / len(self.values)
        return Measured({"": Figure(mean, "units of the input", "mean of output - input")})


def build_offset(config: OffsetConfig, context: BuildContext) -> Any:
    return Offset(config.factor)


@hookimpl
def latentkit_metrics() -> Iterator[MetricSpec]:
    needs = ("decoder", "modality")
    yield MetricSpec(
        "offset", "mean error", OffsetConfig, build_offset, 1, needs, modalities=["image"]
    )
    yield MetricSpec("nowhere", "of no modality", OffsetConfig, build_offset, 1, needs)


class TallyRecipe(Recipe):
    """Task `tally`."""

    task: Literal["tally"] = Field(description="what the recipe does")
    source: Use = Field(description="where samples come from")
    factor: int = Field(1, ge=1, description="what the number of samples is multiplied by")

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source


def tally(recipe: TallyRecipe, context: TaskContext) -> int:
    context.say("counting")
    return recipe.factor * len(build_part(recipe, "source"))


def check_tally(recipe: TallyRecipe, remote: Collection[str]) -> None:
    if "source" not in remote:
        build_part(recipe, "source")


def describe_tally(recipe: TallyRecipe, context: TaskContext) -> str:
    return f"would count {recipe.source.use}"


@hookimpl
def latentkit_tasks() -> Iterator[TaskSpec]:
    yield TaskSpec(
        "tally",
        "count samples",
        TallyRecipe,
        tally,
        describe=describe_tally,
        check=check_tally,
        report="{} samples".format,
        takes=["prune"],
    )


def add_greet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="who is greeted")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="how often")


def greet(options: argparse.Namespace) -> int:
    if options.times < 1:
        raise LatentkitError(f"--times {options.times}: expected at least 1")
    print(f"hello {options.name}\n" * options.times, end="")
    return 0


def encode(options: argparse.Namespace) -> int:
    raise AssertionError("core's command goes before")


@hookimpl
def latentkit_commands() -> Iterator[CommandSpec]:
    yield CommandSpec("greet", "say hello", add_greet, greet)
    yield CommandSpec("encode", "never run", add_greet, encode)

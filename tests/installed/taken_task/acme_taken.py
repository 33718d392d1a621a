"""A plugin with a task of core's name."""

from typing import Literal

from pydantic import Field

from latentkit.contracts import Recipe, TaskContext, TaskSpec
from latentkit.hooks import hookimpl


class TakenRecipe(Recipe):
    task: Literal["evaluate"] = Field(description="what the recipe does")


def run(recipe: TakenRecipe, context: TaskContext) -> str:
    raise AssertionError("never run: two have the name")


@hookimpl
def latentkit_tasks() -> TaskSpec:
    return TaskSpec("evaluate", "never run", TakenRecipe, run)

"""Every check for tasks is proved by a task that is broken in one way and must fail it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import ConfigDict, Field, field_validator

from latentkit.contracts import Recipe, RecipePart, TaskContext, TaskSpec, Use, lazy
from latentkit.errors import PluginError
from latentkit.testing import TaskContract, check_names, find_failures


class Output(RecipePart):
    path: str = Field(description="file to write")


class DoubleRecipe(Recipe):
    task: Literal["double"] = Field(description="what the recipe does")
    source: Use = Field(description="where samples come from")
    extra: list[Use] = Field([], description="more of them")
    output: Output = Field(description="where it goes")

    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source
        for number, use in enumerate(self.extra):
            yield "source", f"extra[{number}]", use


class SilentOutput(Output):
    depth: int = 1


class SilentRecipe(DoubleRecipe):
    output: SilentOutput = Field(description="where it goes")


class LooseOutput(Output):
    model_config = ConfigDict(extra="ignore")


class LooseRecipe(DoubleRecipe):
    output: LooseOutput = Field(description="where it goes")


class OneWayRecipe(DoubleRecipe):
    size: str = Field("4", description="a number that is kept as something else")

    @field_validator("size")
    @classmethod
    def _double(cls, size: str) -> str:
        return size + size


class ForgetfulRecipe(DoubleRecipe):
    def uses(self) -> Iterator[tuple[str, str, Use]]:
        yield "source", "source", self.source


def run(recipe: DoubleRecipe, context: TaskContext) -> str:
    Path(recipe.output.path).write_text(recipe.source.use)
    return f"{recipe.output.path}: written"


def run_once(recipe: DoubleRecipe, context: TaskContext) -> str:
    with Path(recipe.output.path).open("x"):
        return "written"


def run_silently(recipe: DoubleRecipe, context: TaskContext) -> None:
    run(recipe, context)


def describe(recipe: DoubleRecipe, context: TaskContext) -> str:
    return f"would write {recipe.output.path}"


def describe_silently(recipe: DoubleRecipe, context: TaskContext) -> Any:
    return None


def check(recipe: DoubleRecipe, remote: Collection[str]) -> None:
    assert not remote


def check_and_write(recipe: DoubleRecipe, remote: Collection[str]) -> None:
    run(recipe, TaskContext())


class DoubleContract(TaskContract):
    def __init__(self, model: Any = DoubleRecipe, run: Any = run, **more: Any) -> None:
        parts = {"describe": describe, "check": check, **more}
        self.spec = TaskSpec("double", "write a word", model, run, **parts)

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        more = {"size": "1"} if "size" in self.spec.recipe.model_fields else {}
        values = {"task": "double", "source": {"use": "a"}, "extra": [{"use": "b"}], **more}
        return {**values, "output": {"path": "out"}}

    def entry_point(self) -> str | None:
        return None


BROKEN = {
    "silent": (lambda: DoubleContract(SilentRecipe), "test_recipe_is_described_to_its_depths"),
    "loose": (lambda: DoubleContract(LooseRecipe), "test_recipe_is_described_to_its_depths"),
    "one-way": (lambda: DoubleContract(OneWayRecipe), "test_recipe_survives_being_written"),
    "forgetful": (
        lambda: DoubleContract(ForgetfulRecipe),
        "test_plugins_that_the_recipe_names_are_in_uses",
    ),
    "check-writes": (
        lambda: DoubleContract(check=check_and_write),
        "test_checking_writes_nothing",
    ),
    "dry-run-writes": (
        lambda: DoubleContract(describe=run),
        "test_a_dry_run_says_something_and_writes_nothing",
    ),
    "dry-run-silent": (
        lambda: DoubleContract(describe=describe_silently),
        "test_a_dry_run_says_something_and_writes_nothing",
    ),
    "run-silent": (
        lambda: DoubleContract(run=run_silently),
        "test_it_runs_and_says_what_it_made",
    ),
    "once": (lambda: DoubleContract(run=run_once), "test_it_runs_again"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_task_broken_in_one_way_fails_the_check_for_it(name: str, tmp_path: Path) -> None:
    make, check_name = BROKEN[name]
    assert set(find_failures(make(), tmp_path)) == {check_name}


def test_a_good_task_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(DoubleContract(), tmp_path) == {}
    (tmp_path / "plain").mkdir()
    plain = DoubleContract(describe=None, check=None)
    assert find_failures(plain, tmp_path / "plain") == {}


def test_every_check_for_tasks_is_proved() -> None:
    shared = {name for name in check_names(TaskContract) if name not in vars(TaskContract)}
    assert {name for _, name in BROKEN.values()} == set(check_names(TaskContract)) - shared


class OtherRecipe(Recipe):
    task: Literal["other"] = Field(description="what the recipe does")


class BareRecipe(Recipe):
    depth: int = 1


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("My Task", "say", Recipe, run), {}, "name must be kebab-case, such as 'my-task'"),
        (("say", "say", dict, run), {}, "recipe must be a subclass of latentkit.contracts.Recipe"),
        (("say", "say", OtherRecipe, run), {}, r"OtherRecipe.task takes \('other',\) alone"),
        (("say", "say", BareRecipe, run), {}, "recipe keys without a description: depth"),
        (("say", "say", Recipe, None), {}, "run must be callable, got NoneType"),
        (("say", "say", Recipe, run), {"describe": 3}, "describe must be callable, got int"),
        (("say", "say", Recipe, run), {"takes": ["speed"]}, "takes must be some of"),
        (("say", "say", Recipe, run), {"takes": "prune"}, "takes must be some of"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(
    arguments: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        TaskSpec(*arguments, **more)


def test_a_lazy_part_is_loaded_and_checked_on_first_use() -> None:
    spec = TaskSpec("say", "say", Recipe, lazy("calendar:nothing"), describe=lazy("calendar:prmonth"))
    import calendar

    assert spec.describe is calendar.prmonth
    with pytest.raises(PluginError, match=r"TaskSpec\('say'\): run: calendar:nothing can't be load"):
        spec.run  # noqa: B018
    with pytest.raises(TypeError, match=r"recipe must be a subclass of latentkit\.contracts\.Recipe"):
        TaskSpec("say", "say", lazy("calendar:Calendar"), run).recipe  # noqa: B018

"""Checks for tasks."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from latentkit.contracts import NamedSpec, Recipe, TaskContext, TaskSpec, Use
from latentkit.recipe.schema import parse_recipe
from latentkit.testing.plugin import SpecContract, config_models

CONTEXT = TaskContext(device="cpu")


class TaskContract(SpecContract, ABC):
    """Checks that every task must pass. Set `spec`, and override `make_values`."""

    spec_type: ClassVar[type[NamedSpec]] = TaskSpec

    spec: TaskSpec

    # ------------------------------------------------------------ what a plugin author overrides

    @abstractmethod
    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        """Return the values of a small recipe that works, and make the files it reads. Relative
        paths start from `tmp_path`.
        """

    def entry_point(self) -> str | None:
        """See `SpecContract`. By default it is the module of the recipe model."""
        return self.spec.recipe.__module__

    # ------------------------------------------------------------ the recipe

    def test_recipe_is_described_to_its_depths(self, tmp_path: Path) -> None:
        """Every key of the recipe, and of each mapping inside it, has a description; unknown keys
        are errors; nothing can be changed.
        """
        for model in config_models(self.spec.recipe):
            bare = [name for name, field in model.model_fields.items() if not field.description]
            assert not bare, (
                f"{model.__name__}: say what these keys do, in Field(description=...):"
                f" {', '.join(bare)}"
            )
            options = model.model_config
            is_strict = options.get("extra") == "forbid" and options.get("frozen")
            assert is_strict, (
                f"{model.__name__}: subclass latentkit.contracts.RecipePart, so that unknown keys"
                " are errors and values stay"
            )

    def test_recipe_survives_being_written(self, tmp_path: Path) -> None:
        """A recipe, written as JSON and read again, is an equal recipe."""
        recipe = self.make_recipe(tmp_path)
        written = json.loads(recipe.model_dump_json(by_alias=True))
        again = parse_recipe(written, recipe.origin, tmp_path, model=self.spec.recipe)
        assert again == recipe, (
            f"from {recipe!r}, written and read again, came {again!r}: validators must accept their"
            " own output"
        )

    def test_plugins_that_the_recipe_names_are_in_uses(self, tmp_path: Path) -> None:
        """`uses` gives the key of every `use:` in the recipe, by which `latentkit check` finds it.
        """
        recipe = self.make_recipe(tmp_path)
        given = {where for _, where, _ in recipe.uses()}
        lacking = sorted(set(_find_uses(recipe, "")) - given)
        assert not lacking, f"uses() leaves out {', '.join(lacking)}"

    # ------------------------------------------------------------ the run

    def test_checking_writes_nothing(self, tmp_path: Path) -> None:
        """`check` accepts a recipe that works, and changes no file."""
        recipe, before = self.make_recipe(tmp_path), _read_files(tmp_path)
        if self.spec.check is not None:
            self.spec.check(recipe, ())
        changed = _find_changes(before, _read_files(tmp_path))
        assert not changed, f"check wrote {changed}: open what a run opens, and write nothing"

    def test_a_dry_run_says_something_and_writes_nothing(self, tmp_path: Path) -> None:
        """`describe`, if it exists, returns a text, and changes no file."""
        if self.spec.describe is None:
            return
        recipe, before = self.make_recipe(tmp_path), _read_files(tmp_path)
        text = self.spec.describe(recipe, CONTEXT)
        is_text = isinstance(text, str) and bool(text)
        assert is_text, f"describe gave {text!r}; expected a text"
        changed = _find_changes(before, _read_files(tmp_path))
        assert not changed, f"describe wrote {changed}: a dry run writes nothing"

    def test_it_runs_and_says_what_it_made(self, tmp_path: Path) -> None:
        """`run` completes a recipe that works, and `report` returns lines about its result."""
        text = self.run_recipe(tmp_path)
        is_text = isinstance(text, str) and text not in ("", "None")
        assert is_text, (
            f"report gave {text!r}; expected lines that say what was made and where: let run return"
            " them, or give report=..."
        )

    def test_it_runs_again(self, tmp_path: Path) -> None:
        """Running the same recipe again is no error: the task continues, or makes the result again.
        """
        self.run_recipe(tmp_path)
        try:
            self.spec.run(self.make_recipe(tmp_path), CONTEXT)
        except Exception as error:
            raise AssertionError(
                f"the second run of one recipe raised {error!r}: go on where the first stopped, or"
                " replace what it made"
            ) from error

    # ------------------------------------------------------------ for the checks

    def make_recipe(self, tmp_path: Path) -> Recipe:
        """Return the recipe of `make_values`, which is called once in a test."""
        kept = tmp_path / "recipe.json"
        if not kept.exists():
            kept.write_text(json.dumps(self.make_values(tmp_path)), encoding="utf-8")
        values = json.loads(kept.read_text(encoding="utf-8"))
        return parse_recipe(values, "recipe", tmp_path, model=self.spec.recipe)

    def run_recipe(self, tmp_path: Path) -> str:
        """Run the recipe and return the text that is printed after it."""
        return self.spec.report(self.spec.run(self.make_recipe(tmp_path), CONTEXT))


def _find_uses(value: Any, key: str) -> Iterator[str]:
    """Yield the recipe key of every plugin that a recipe names."""
    if isinstance(value, Use):
        yield key
    if isinstance(value, BaseModel):
        parts = {f"{key}.{name}": getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, Mapping):
        parts = {f"{key}.{name}": part for name, part in value.items()}
    elif isinstance(value, list | tuple):
        parts = {f"{key}[{number}]": part for number, part in enumerate(value)}
    else:
        parts = {}
    for name, part in parts.items():
        yield from _find_uses(part, name.removeprefix("."))


def _read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _find_changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return the names of the files that have changed."""
    names = sorted({*before, *after})
    return ", ".join(name for name in names if before.get(name) != after.get(name))

"""Checks for every kind of plugin, and functions that run checks without pytest."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from latentkit.contracts import BuildContext, NamedSpec, PluginSpec

HEAVY = ("torch", "diffusers", "accelerate", "datasets", "transformers")
"""Modules that take seconds to import, and must not slow down commands such as `latentkit plugins`.
"""

IMPORT_PROGRAM = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(",".join(name for name in sys.argv[2:] if name in sys.modules))
"""


class SpecContract:
    """Checks that every declaration must pass. Subclass one of its subclasses, not this class.

    `tmp_path`, in every method that takes it, is an empty folder for this test alone.
    """

    spec: NamedSpec
    """The declaration that the plugin's hook returns."""

    spec_type: ClassVar[type[NamedSpec]] = NamedSpec

    def entry_point(self) -> str | None:
        """Return the name of the module in the plugin's entry point; None for a spec that only a
        test declares.
        """
        raise NotImplementedError

    def test_spec_is_of_the_kind_that_its_hook_returns(self, tmp_path: Path) -> None:
        """A source is declared by a `SourceSpec`, an encoder by an `EncoderSpec`, and so on."""
        wanted, got = self.spec_type.__name__, type(self.spec).__name__
        assert isinstance(
            self.spec, self.spec_type
        ), f"spec is a {got}: declare this plugin with {wanted}(name, summary, ...)"

    def test_importing_the_plugin_loads_nothing_heavy(self, tmp_path: Path) -> None:
        """Importing the module that declares the plugin loads no torch, because `latentkit plugins`
        imports every installed plugin.
        """
        module = self.entry_point()
        if module is None:
            return
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", IMPORT_PROGRAM, module, *HEAVY]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        advice = "override entry_point() to name the module of the plugin's entry point"
        assert done.returncode == 0, f"{module} can't be imported by name; {advice}:\n{done.stderr}"
        loaded = done.stdout.strip()
        assert not loaded, (
            f"importing {module} loads {loaded}: import it inside `build`, or in a module that"
            " `build` imports"
        )


class PluginContract(SpecContract):
    """Checks for every plugin that is built from options. Subclass one of its subclasses, not this
    class.
    """

    spec: PluginSpec
    """The declaration that the plugin's hook returns."""

    spec_type: ClassVar[type[NamedSpec]] = PluginSpec
    protocols: ClassVar[tuple[type, ...]] = ()

    # ------------------------------------------------------------ what a plugin author overrides

    def make_config(self, tmp_path: Path) -> BaseModel:
        """Return the config to test with, by default with all defaults. It is called once in a
        test, so it may write files.
        """
        return self.spec.config()

    def make_context(self, tmp_path: Path) -> BuildContext:
        """Return the context for `build`."""
        return BuildContext(recipe_dir=tmp_path)

    def entry_point(self) -> str | None:
        """Return the name of the module in the plugin's entry point; None for a spec that only a
        test declares.
        """
        return self.spec.config.__module__

    # ------------------------------------------------------------ for the contracts

    def build(self, tmp_path: Path) -> Any:
        """Build the plugin from `make_config` and `make_context`."""
        return self.spec.build(self.make_config(tmp_path), self.make_context(tmp_path))

    def build_twice(self, tmp_path: Path) -> tuple[Any, Any]:
        """Build the plugin twice from one config."""
        config, context = self.make_config(tmp_path), self.make_context(tmp_path)
        return self.spec.build(config, context), self.spec.build(config, context)

    # ------------------------------------------------------------ checks

    def test_config_is_described_to_its_depths(self, tmp_path: Path) -> None:
        """Every field of the config, and of each model inside it, has a description; unknown keys
        are errors; nothing can be changed.
        """
        for model in config_models(self.spec.config):
            bare = [name for name, field in model.model_fields.items() if not field.description]
            assert not bare, (
                f"{model.__name__}: say what these fields do, in Field(description=...):"
                f" {', '.join(bare)}"
            )
            strict = model.model_config.get("extra") == "forbid" and model.model_config.get(
                "frozen"
            )
            assert strict, (
                f"{model.__name__}: subclass latentkit.contracts.Config, so that unknown keys are"
                " errors and values stay"
            )

    def test_config_survives_being_written_to_a_recipe(self, tmp_path: Path) -> None:
        """Values that were set in a config, written as JSON and validated again, give an equal
        config: a run is resumed from its own recipe.
        """
        config = self.make_config(tmp_path)
        again = type(config).model_validate(json.loads(config.model_dump_json(exclude_unset=True)))
        assert again == config, (
            f"from {config!r}, written and read again, came {again!r}: validators must accept their"
            " own output"
        )

    def test_build_gives_what_the_hook_promises(self, tmp_path: Path) -> None:
        """The object that `build` returns has every member of its protocol."""
        built = self.build(tmp_path)
        names = " or ".join(protocol.__name__ for protocol in self.protocols)
        assert isinstance(built, self.protocols), (
            f"build gave a {type(built).__name__}, which lacks members of"
            f" latentkit.contracts.{names}"
        )


def config_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a pydantic model and every model in its fields."""
    waiting, seen = [model], set()
    while waiting:
        model = waiting.pop()
        seen.add(model)
        yield model
        found = (part for field in model.model_fields.values() for part in _parts(field.annotation))
        waiting += {
            part for part in found if isinstance(part, type) and issubclass(part, BaseModel)
        } - seen


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield a type and all types it is made of."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def is_plain(value: object) -> bool:
    """Return whether a value is a JSON-like scalar or a list of them. NaN, and text that UTF-8
    can't encode, are not.
    """
    if isinstance(value, list | tuple):
        return all(is_plain(item) and not isinstance(item, list | tuple) for item in value)
    if isinstance(value, str):
        return is_storable(value)
    return (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    )


def is_storable(text: str) -> bool:
    """Return whether a text can be written as UTF-8; some file names can't."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def find_unplain(values: Mapping[str, object]) -> list[str]:
    """Return the names of the values that are not plain."""
    return [
        str(name)
        for name, value in values.items()
        if not isinstance(name, str) or not is_plain(value)
    ]


# ---------------------------------------------------------------- without pytest


def check_names(contract: type[SpecContract]) -> list[str]:
    """Return the names of a contract's checks, in alphabetical order."""
    return [name for name in dir(contract) if name.startswith("test_")]


def find_failures(contract: SpecContract, folder: Path) -> dict[str, Exception]:
    """Run all checks; return the name of each check that fails, with its exception.

    Args:
        contract: an instance of a contract with its `spec`.
        folder: folder in which each check gets a sub-folder as its `tmp_path`.
    """
    failures = {}
    for name in check_names(type(contract)):
        tmp_path = folder / name
        tmp_path.mkdir()
        try:
            getattr(contract, name)(tmp_path)
        except Exception as error:  # noqa: BLE001 (plugin boundary)
            failures[name] = error
    return failures

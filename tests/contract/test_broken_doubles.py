"""Every check that all contracts share fails for a declaration that is broken in that one way; the
kit's own example runs.

Doubles that break the checks of one kind of plugin are in test_broken_sources.py and so on.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

import latentkit.testing
from latentkit.contracts import Config, Entry, ModalitySpec, Sample, SourceSpec
from latentkit.testing import PluginContract, SourceContract, check_names, find_failures

CONTRACTS: list[type[PluginContract]] = [
    found
    for name in latentkit.testing.__all__
    if isinstance(found := getattr(latentkit.testing, name), type)
]


class Words:
    """A good source of texts."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(range(2)[index]), "word")

    def entries(self) -> Any:
        return iter([Entry("0"), Entry("1")])


class Options(Config):
    depth: int = Field(1, description="how deep, in metres")


class DoubtfulOptions(Config):
    depth: int = 1
    """No description that a user would see."""


class LooseOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)
    depth: int = Field(1, description="how deep, in metres")


class WordsConfig(Config):
    options: Options | None = Field(None, description="more of them")


class DoubtfulConfig(Config):
    options: list[DoubtfulOptions] = Field([], description="more of them")


class LooseConfig(Config):
    options: dict[str, LooseOptions | None] = Field({}, description="more of them")


class GrowingConfig(Config):
    size: int = Field(2, description="in pixels")

    @field_validator("size")
    @classmethod
    def _grow(cls, size: int) -> int:
        return size + 1


SPEC = SourceSpec("words", "a word or two", WordsConfig, lambda config, context: Words())


class WordsContract(SourceContract):
    """A good source, unless given something else."""

    def __init__(
        self, spec: Any = SPEC, options: dict[str, Any] | None = None, module: str | None = None
    ) -> None:
        self.spec, self.options, self.module = spec, options or {}, module

    def make_config(self, tmp_path: Path) -> BaseModel:
        return self.spec.config(**self.options)

    def entry_point(self) -> str | None:
        return self.module


BROKEN: dict[str, tuple[str, Callable[[], WordsContract]]] = {
    "declared as a modality": (
        "test_spec_is_of_the_kind_that_its_hook_returns",
        lambda: WordsContract(ModalitySpec(SPEC.name, SPEC.summary, SPEC.config, SPEC.build)),
    ),
    "an option within an option that isn't described": (
        "test_config_is_described_to_its_depths",
        lambda: WordsContract(replace(SPEC, config=DoubtfulConfig)),
    ),
    "options within options that may be misspelled": (
        "test_config_is_described_to_its_depths",
        lambda: WordsContract(replace(SPEC, config=LooseConfig)),
    ),
    "a value that grows each time it is read": (
        "test_config_survives_being_written_to_a_recipe",
        lambda: WordsContract(replace(SPEC, config=GrowingConfig), {"size": 2}),
    ),
    "a module that imports torch": (
        "test_importing_the_plugin_loads_nothing_heavy",
        lambda: WordsContract(module="hasty_plugin"),
    ),
    "a module that isn't there": (
        "test_importing_the_plugin_loads_nothing_heavy",
        lambda: WordsContract(module="no_such_plugin"),
    ),
}


@pytest.fixture
def _plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules on the path, one of which imports torch: an empty one, since its name is what
    counts.
    """
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "torch.py").touch()
    (folder / "hasty_plugin.py").write_text("import torch\n")
    (folder / "patient_plugin.py").write_text("def build():\n    import torch\n")
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.usefixtures("_plugins")
@pytest.mark.parametrize("name", BROKEN)
def test_a_declaration_broken_in_one_way_fails_the_check_for_it(name: str, tmp_path: Path) -> None:
    check, make_contract = BROKEN[name]
    assert set(find_failures(make_contract(), tmp_path)) == {check}


def test_a_build_that_gives_something_else_fails_the_check_for_it(tmp_path: Path) -> None:
    spec = replace(SPEC, build=lambda config, context: [Sample("0", "word")])
    assert "test_build_gives_what_the_hook_promises" in find_failures(WordsContract(spec), tmp_path)


@pytest.mark.usefixtures("_plugins")
def test_a_good_declaration_passes_every_check(tmp_path: Path) -> None:
    assert (
        find_failures(
            WordsContract(options={"options": Options(depth=3)}, module="patient_plugin"), tmp_path
        )
        == {}
    )


def test_every_check_of_declarations_is_proved() -> None:
    assert {check for check, _ in BROKEN.values()} | {
        "test_build_gives_what_the_hook_promises"
    } == set(check_names(PluginContract))


def test_every_check_says_what_it_checks() -> None:
    assert len(CONTRACTS) == 11
    assert [
        name
        for contract in CONTRACTS
        for name in check_names(contract)
        if not getattr(contract, name).__doc__
    ] == []


def test_the_example_of_the_kit_is_a_test_that_passes(tmp_path: Path) -> None:
    example = latentkit.testing.__doc__.split("\n\n", 1)[1].split("\n\nEach check")[0]
    (tmp_path / "test_example.py").write_text(textwrap.dedent(example))
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        f"--basetemp={tmp_path / 'temporary'}",
    ]
    command = [sys.executable, "-m", "pytest", *options, "test_example.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{len(check_names(SourceContract))} passed" in done.stdout

"""The README names every option, and its recipes are valid."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
from latentkit_volume.plugin import VolumeConfig, VolumeKLConfig
from pydantic import BaseModel

from latentkit.kit import discover
from latentkit.recipe.schema import load_recipe
from latentkit.tasks.check_recipe import check_recipe

TEXT = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
RECIPES = [
    textwrap.dedent(part)
    for part in re.findall(r"(?:^    .*\n)+", TEXT, re.MULTILINE)
    if part.startswith("    task:")
]


@pytest.mark.parametrize("config", [VolumeConfig, VolumeKLConfig])
def test_every_option_is_in_the_readme(config: type[BaseModel]) -> None:
    assert not [name for name in config.model_fields if f"`{name}`" not in TEXT]


def test_recipes_of_the_readme_are_valid(tmp_path: Path) -> None:
    assert len(RECIPES) == 2
    for number, text in enumerate(RECIPES):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        check_recipe(load_recipe(path), discover())

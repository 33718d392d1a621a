"""The README is short, has the lines that CI runs, and the recipes that it names can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from documentation import README, ROOT, blocks_of

from latentkit.recipe.schema import TrainRecipe, load_recipe

LONGEST = 200
"""Lines that a newcomer still reads."""


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("marker", ["ci: quickstart", "ci: tests"])
def test_lines_that_ci_runs_are_there(marker: str) -> None:
    (block,) = [block for block in blocks_of(README) if block.marker == marker]
    assert re.fullmatch(r".+\n", block.code)


def test_the_readme_shows_how_to_encode_read_and_train() -> None:
    blocks = list(blocks_of(README))
    code = "".join(block.code for block in blocks if block.language == "python")
    assert "lk.encode(" in code
    assert "lk.open(" in code
    assert any(block.code.startswith("task: train") for block in blocks)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipe_is_valid_and_says_how_to_run_it(recipe: Path) -> None:
    from latentkit.plugins import discover
    from latentkit.tasks.check_recipe import check_recipe

    loaded = load_recipe(recipe)
    if isinstance(loaded, TrainRecipe):  # these tests run without plugins
        kept = [loss for loss in loaded.losses if loss.use != "perceptual"]
        loaded = loaded.model_copy(update={"losses": kept})
    check_recipe(loaded, discover())
    lines = recipe.read_text(encoding="utf-8").splitlines()
    header = [line for line in lines if line.startswith("#")]
    assert any("latentkit run" in line for line in header), "the header gives no command"

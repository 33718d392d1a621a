"""The README says what is there: an undocumented hook, option or recipe key fails, and its code
runs.
"""

from __future__ import annotations

import re
import runpy
import types
from pathlib import Path

import pytest
import torch

from latentkit.contracts import BuildContext, Config, Encoder
from latentkit.recipe.schema import TrainRecipe, load_recipe

REFERENCE = runpy.run_path(str(Path(__file__).with_name("reference.py")))
README: Path = REFERENCE["README"]
TEXT = README.read_text(encoding="utf-8")
ROOT = README.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.M | re.S)


def test_reference_is_what_the_code_says() -> None:
    end = REFERENCE["END"]
    written = TEXT[TEXT.index(REFERENCE["START"]) : TEXT.index(end) + len(end)]
    assert written == REFERENCE["reference"](), "run: python tests/docs/reference.py"


def test_plugin_of_the_readme_works() -> None:
    (code,) = [block for block in blocks("python") if "hookimpl" in block]
    module = types.ModuleType("my_encoder")
    exec(compile(code, "my_encoder.py", "exec"), module.__dict__)
    (spec,) = module.latentkit_encoders()
    encoder = spec.build(spec.config(), BuildContext())
    assert isinstance(encoder, Encoder)
    assert issubclass(spec.config, Config)
    assert encoder.encode(torch.zeros(2, 3, 32, 16))["latent"].shape == (2, 16, 4, 2)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_recipes_of_the_readme_are_valid(block: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(block)
    load_recipe(file)


def test_files_that_the_readme_names_are_there() -> None:
    for name in re.findall(r"`((?:latentkit|recipes|tests)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / link).exists(), link


def test_no_line_promises_what_is_to_come() -> None:
    assert not re.search(r"\b(TODO|coming soon|planned|will be)\b", TEXT)


@pytest.mark.parametrize(
    "recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipe_is_valid_and_says_how_to_run_it(recipe: Path) -> None:
    from latentkit.plugins import discover
    from latentkit.tasks.check_recipe import check_recipe

    loaded = load_recipe(recipe)
    if isinstance(loaded, TrainRecipe):  # these tests run without plugins
        loaded = loaded.model_copy(
            update={"losses": [loss for loss in loaded.losses if loss.use != "perceptual"]}
        )
    check_recipe(loaded, discover())
    header = [
        line for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")
    ]
    assert any("latentkit run" in line for line in header), "the header gives no command"

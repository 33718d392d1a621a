"""`latentkit recipes` and `latentkit recipes copy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentkit.cli.main import main
from latentkit.cli.shipped_recipes import find_recipes
from latentkit.recipe.schema import EncodeRecipe, TrainRecipe, load_recipe

ROOT = Path(__file__).parents[2]


def test_all_recipes_are_listed_by_name_with_their_headline(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = {file.stem for file in (ROOT / "recipes").glob("*.yaml")}
    assert names | {"draw_images.py", "train_flow_matching.py"} == {line.split()[0] for line in lines[:-1]}
    (quickstart,) = [line for line in lines if line.startswith("quickstart ")]
    assert "Photographs of scikit-image" in quickstart
    assert lines[-1].startswith("`latentkit recipes copy NAME`")


def test_a_copy_goes_where_the_recipe_s_own_command_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "quickstart"]) == 0
    copied = Path("recipes/quickstart.yaml")
    assert copied.read_bytes() == (ROOT / "recipes" / "quickstart.yaml").read_bytes()
    said = capsys.readouterr().out
    assert f"latentkit run {copied}" in said
    assert f"latentkit run {copied}" in copied.read_text(encoding="utf-8")
    recipe = load_recipe(copied)
    assert isinstance(recipe, EncodeRecipe)
    assert recipe.output.path == str(tmp_path / "latents" / "quickstart")


def test_the_configuration_that_a_recipe_names_comes_along(tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "own"
    assert main(["recipes", "copy", "train-kl-f8-gan.yaml", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {"train-kl-f8-gan.yaml", "kl-f8.json"}
    recipe = load_recipe(folder / "train-kl-f8-gan.yaml")
    assert isinstance(recipe, TrainRecipe)
    (folder / "train-kl-f8-gan.yaml").unlink()
    assert main(["recipes", "copy", "train-kl-f8-gan", str(folder)]) == 0  # the same file stays


@pytest.mark.parametrize("there", ["train-kl-f8-gan.yaml", "kl-f8.json"])
def test_nothing_is_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    (tmp_path / there).write_text("mine")
    assert main(["recipes", "copy", "train-kl-f8-gan", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"latentkit: {tmp_path / there} is there already; choose another folder: "
        "latentkit recipes copy train-kl-f8-gan FOLDER\n"
    )
    assert (tmp_path / there).read_text() == "mine"
    assert there == "train-kl-f8-gan.yaml" or not (tmp_path / "train-kl-f8-gan.yaml").exists()


def test_an_unknown_recipe_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "copy", "quikstart"]) == 2
    said = capsys.readouterr().err
    assert "no recipe is named 'quikstart', did you mean 'quickstart'? Known: augment-study" in said


def test_a_folder_that_can_t_be_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["recipes", "copy", "quickstart", str(tmp_path / "file" / "in")]) == 2
    assert (
        f"{tmp_path / 'file' / 'in'} can't be written: Not a directory" in capsys.readouterr().err
    )


def test_recipes_are_found_in_the_clone() -> None:
    assert find_recipes()["quickstart"].is_file()

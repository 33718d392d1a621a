"""The recipes that come with the package: find, list and copy them."""

from __future__ import annotations

from pathlib import Path

from latentkit.errors import LatentkitError
from latentkit.runtime.key_errors import suggest

INSTALLED = Path(__file__).parents[1] / "recipes"
CLONE = Path(__file__).parents[2] / "recipes"


def find_recipes() -> dict[str, Path]:
    """Return the path of each recipe, and of the example trainer, by the name to copy it with.

    Raises:
        LatentkitError: there are no recipes, neither in the installation nor in a clone.
    """
    folder = INSTALLED if INSTALLED.is_dir() else CLONE
    found = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    found |= {file.name: file for file in sorted(folder.glob("*.py"))}
    if not found:
        advice = "pip install --force-reinstall --no-deps latentkit-diffusion"
        raise LatentkitError(f"no recipes are in {folder}; install the package again: {advice}")
    return found


def list_recipes() -> str:
    """Return name and first line of each recipe, and the command that copies one."""
    found = find_recipes()
    width = max(map(len, found))
    lines = [f"{name:<{width}}  {_headline(file)}" for name, file in found.items()]
    return "\n".join([*lines, "`latentkit recipes copy NAME` writes one to the folder recipes"])


def _headline(file: Path) -> str:
    return file.read_text(encoding="utf-8").splitlines()[0].strip('"# ')


def copy_recipe(name: str, folder: Path) -> list[Path]:
    """Copy a recipe to `folder`, and beside it the model configurations that it names.

    Args:
        name: a name from `list_recipes`, with or without .yaml.
        folder: folder to write to; created if it is missing.

    Returns:
        the recipe's path, then those of the files beside it.

    Raises:
        LatentkitError: there is no such recipe, a file is there already, or one can't be written.
    """
    found = find_recipes()
    recipe = found.get(name) or found.get(name.removesuffix(".yaml"))
    if recipe is None:
        known = ", ".join(found)
        raise LatentkitError(
            f"no recipe is named {name!r}{suggest(name, found) or '.'} Known: {known}"
        )
    text = recipe.read_text(encoding="utf-8")
    beside = [file for file in sorted(recipe.parent.glob("*.json")) if file.name in text]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in beside:
            if not _is_same(folder / file.name, file):  # another recipe's copy brought it
                _write(folder / file.name, file)
        _write(folder / recipe.name, recipe)
    except FileExistsError as error:
        advice = f"choose another folder: latentkit recipes copy {name} FOLDER"
        raise LatentkitError(f"{error.filename} is there already; {advice}") from error
    except OSError as error:
        raise LatentkitError(f"{folder} can't be written: {error.strerror or error}") from error
    return [folder / file.name for file in (recipe, *beside)]


def _is_same(path: Path, file: Path) -> bool:
    return path.is_file() and path.read_bytes() == file.read_bytes()


def _write(path: Path, file: Path) -> None:
    with path.open("xb") as new:
        new.write(file.read_bytes())

"""What sdists and wheels hold, of the package and of a plugin: `python contents.py FOLDER`."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

CORE = {
    "latentkit/__init__.py",
    "latentkit/py.typed",
    "latentkit/weights/tiny-kl/diffusion_pytorch_model.safetensors",
    "latentkit/weights/tiny-kl-16/diffusion_pytorch_model.safetensors",
    "latentkit/plugins/scaffolds/every/pyproject.toml.in",
}
RECIPES = ("quickstart.yaml", "train-kl-f8-gan.yaml", "kl-f8.json", "train_flow_matching.py")
SOURCE = {
    *CORE,
    *(f"recipes/{name}" for name in RECIPES),
    *(
        "LICENSE",
        "NOTICE",
        "README.md",
        "CHANGELOG.md",
        "pyproject.toml",
        "constraints.txt",
        "constraints-lowest.txt",
    ),
    *("tests/conftest.py", "tests/golden/v1/dataset.json", "docs/contract.md"),
    *("plugins/latentkit-video/pyproject.toml", "examples/latentkit-sqlite/pyproject.toml"),
}
UNWANTED = ("/.venv", "/.git/", "/.github", "/.ci", "__pycache__", "_cache/")


def list_files(folder: Path, pattern: str) -> set[str]:
    """Names in the one archive that fits a pattern; those of an sdist without its top folder."""
    (path,) = folder.glob(pattern)
    if path.suffix == ".whl":
        return set(zipfile.ZipFile(path).namelist())
    with tarfile.open(path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def check(what: str, names: set[str], wanted: set[str]) -> None:
    """End the program where something is missing, or there that shouldn't be."""
    missing = sorted(wanted - names)
    unwanted = sorted(name for name in names if any(part in f"/{name}" for part in UNWANTED))
    if missing or unwanted:
        sys.exit(f"{what}: missing {missing}; not wanted {unwanted[:10]}")
    print(f"{what}: {len(names)} files")


def check_wheel(folder: Path, distribution: str, wanted: set[str]) -> None:
    """A wheel, with its license; it holds nothing outside its package and its metadata."""
    names = list_files(folder, f"{distribution}-*.whl")
    (metadata,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    package = sorted(wanted)[0].partition("/")[0]
    others = {name for name in names if not name.startswith((f"{package}/", f"{metadata}/"))}
    if others:
        sys.exit(f"{distribution}: outside its package: {sorted(others)[:10]}")
    check(f"wheel {distribution}", names, wanted | {f"{metadata}/licenses/LICENSE"})


def main(folder: Path) -> None:
    """Check the four files."""
    check("sdist", list_files(folder, "latentkit_diffusion-*.tar.gz"), SOURCE)
    check_wheel(
        folder, "latentkit_diffusion", CORE | {f"latentkit/recipes/{name}" for name in RECIPES}
    )
    own = {"latentkit_perceptual/__init__.py", "latentkit_perceptual/py.typed"}
    check(
        "sdist of a plugin",
        list_files(folder, "latentkit_perceptual-*.tar.gz"),
        {*own, "LICENSE", "pyproject.toml"},
    )
    check_wheel(folder, "latentkit_perceptual", own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

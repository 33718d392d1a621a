"""What a folder is taken for by the names of its files; of modalities there are `image` and one of a plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentkit import shorthand
from latentkit.contracts import Config, ModalitySpec
from latentkit.errors import RecipeError
from latentkit.plugins import Provided, Registry, discover


class NoConfig(Config):
    """Without options."""


def with_sounds() -> Registry:
    spec = ModalitySpec("sound", "sounds", NoConfig, lambda config, context: None, suffixes=[".wav", ".nii.gz"])
    own = [one for one in discover().provided if one.distribution == "latentkit"]
    return Registry([*own, Provided(spec, "acme-sound", "1")])


@pytest.fixture(autouse=True)
def _sounds_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_sounds()
    monkeypatch.setattr(shorthand, "discover", lambda: found)


def recipe_of(folder: Path, names: list[str], encoder: str | None = "tiny-kl") -> tuple[dict[str, Any], list[str]]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return shorthand.encode_recipe(str(folder), "out", encoder)


@pytest.mark.parametrize(
    ("names", "source", "modality"),
    [
        (["a.jpg"], "folder", "image"),
        (["a.jpg", "a.wav", "b.wav"], "folder", "image"),
        (["a.parquet"], "datasets", "image"),
        (["deep/a.wav"], "folder", "sound"),
        (["a.WAV", "b.wav", "metadata.csv"], "folder", "sound"),
        (["a.nii.gz"], "folder", "sound"),
        (["a.wav", "0.tar", "1.tar"], "datasets", "image"),
        (["a.xyz"], "folder", "image"),
    ],
)
def test_a_folder_is_what_its_files_are(tmp_path: Path, names: list[str], source: str, modality: str) -> None:
    values, remarks = recipe_of(tmp_path, names)
    assert (values["source"]["use"], values["modality"]["use"]) == (source, modality)
    assert values["source"]["with"].get("suffixes") == ([".wav", ".nii.gz"] if modality == "sound" else None)
    assert any("modality sound" in remark for remark in remarks) == (modality == "sound")


def test_what_the_usual_encoder_cannot_take_needs_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="taken for sound, and no --encoder"):
        recipe_of(tmp_path, ["a.wav"], encoder=None)


@pytest.mark.parametrize("suffixes", [["wav"], [".WAV"], ".wav"])
def test_suffixes_are_endings_in_lower_case(suffixes: Any) -> None:
    with pytest.raises(ValueError, match="suffixes must be like"):
        ModalitySpec("sound", "sounds", NoConfig, lambda config, context: None, suffixes=suffixes)

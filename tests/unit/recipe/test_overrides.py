"""Single keys set from outside, and what a path is relative to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from latentkit.errors import RecipeError
from latentkit.recipe.overrides import apply_override, make_paths_absolute, split_overrides
from latentkit.runtime.paths import find_local_path


def values() -> dict[str, Any]:
    return {
        "encoder": {"use": "diffusers"},
        "losses": [{"use": "l1"}, {"use": "kl", "weight": 1.0}],
        "seed": 0,
        "modality": {"with": None},
    }


def overridden(*texts: str) -> dict[str, Any]:
    changed = values()
    for key, value in split_overrides(texts):
        apply_override(changed, key, value)
    return changed


def test_a_key_is_set_and_nothing_else_changes() -> None:
    assert overridden("losses[1].weight=1e-6") == {
        **values(),
        "losses": [{"use": "l1"}, {"use": "kl", "weight": 1e-6}],
    }


def test_missing_mappings_on_the_way_are_made() -> None:
    assert overridden("encoder.with.dtype=bfloat16")["encoder"] == {
        "use": "diffusers",
        "with": {"dtype": "bfloat16"},
    }
    assert overridden("modality.with.size=64")["modality"] == {"with": {"size": 64}}
    assert overridden("output.path=/a")["output"] == {"path": "/a"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=3", 3),
        ("seed=no", "no"),
        ("seed=", None),
        ("seed=[1, a]", [1, "a"]),
        ("seed={a: 1e-3}", {"a": 1e-3}),
        ("seed=a=b", "a=b"),
        ("seed='3'", "3"),
    ],
)
def test_a_typed_value_is_read_as_a_recipe_would(text: str, expected: object) -> None:
    assert overridden(text)["seed"] == expected


def test_a_later_override_wins_and_an_earlier_one_is_seen() -> None:
    assert overridden("losses=[{use: mse}]", "losses[0].weight=2", "losses[0].weight=3")[
        "losses"
    ] == [{"use": "mse", "weight": 3}]


def test_a_whole_entry_of_a_list_can_be_set() -> None:
    assert overridden("losses[0]={use: mse}")["losses"][0] == {"use": "mse"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses[2].weight=1", r"losses has 2 entries, \[0\] to \[1\]; got \[2\]"),
        ("losses[2]=1", r"losses has 2 entries"),
        ("losses.weight=1", "losses is a list, expected a mapping"),
        ("seed.x=1", "seed is 0, expected a mapping"),
        ("seed[0]=1", "seed is 0, expected a list"),
        ("encoder[0]=1", "encoder is a mapping, expected a list"),
        ("views[0]=1", "views is missing, expected a list"),
        ("[0]=1", "expected a key such as"),
        ("encoder..with=1", "expected a key such as"),
        ("losses[-1].weight=1", "expected a key such as"),
        ("losses[x]=1", "expected a key such as"),
        ("=1", "expected a key such as"),
        ("a b=1", "expected a key such as"),
        ("seed", "expected KEY=VALUE"),
        ("seed=[1", "not valid YAML"),
        ("seed=*x", "anchors and aliases"),
    ],
)
def test_an_override_that_cannot_be_applied_names_itself(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        overridden(text)
    assert str(caught.value).startswith(f"override '{text.split('=')[0]}")


def test_one_text_in_place_of_a_list_is_a_misuse() -> None:
    with pytest.raises(TypeError, match="must be a list"):
        list(split_overrides("seed=1"))


def test_ready_values_are_taken_as_they_are() -> None:
    assert list(split_overrides({"seed": "3"})) == [("seed", "3")]


@pytest.mark.parametrize(
    "text", ["stabilityai/sd-vae-ft-mse", "photos", "", "s3://bucket/photos", "hf://datasets/a/b"]
)
def test_a_name_that_is_not_there_is_no_path(text: str, tmp_path: Path) -> None:
    assert find_local_path(text, tmp_path) is None


def test_what_exists_or_starts_like_a_path_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find_local_path("owner/name", tmp_path) == tmp_path / "owner" / "name"
    assert find_local_path("./absent", tmp_path) == tmp_path / "absent"
    assert find_local_path("../absent", tmp_path / "owner") == tmp_path / "absent"
    assert find_local_path("/absent", tmp_path) == Path("/absent")
    assert find_local_path("~/absent", tmp_path) == tmp_path / "home" / "absent"


def test_a_typed_path_starts_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    here = os.getcwd()
    changed = overridden(
        "source.with.path=photos",
        "output.path=out/latents",
        "encoder.with={model: ./vae, revision: photos}",
    )
    assert changed["source"] == {"with": {"path": f"{here}/photos"}}
    assert changed["output"] == {"path": f"{here}/out/latents"}
    assert changed["encoder"]["with"] == {"model": f"{here}/vae", "revision": "photos"}


@pytest.mark.parametrize(
    "text", ["w1/*.tar::w2/*.tar", "a.tar::b.tar", "a.tar::gone.tar", "{0..1}.tar::b.tar"]
)
def test_each_of_several_paths_in_one_text_is_anchored(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"")
    expected = "::".join(str(tmp_path / part) for part in text.split("::"))
    for key in (("source", "with", "path"), ("source", "with", "path", 0)):
        assert make_paths_absolute(text, key, tmp_path) == expected
    assert make_paths_absolute(expected, ("source", "with", "path"), Path("/elsewhere")) == expected
    assert (
        make_paths_absolute("simplecache::s3://bucket/a.tar", ("source", "with", "path"), tmp_path)
        == "simplecache::s3://bucket/a.tar"
    )
    (tmp_path / "x::y").write_bytes(b"")
    assert make_paths_absolute("x::y", ("source", "with", "path"), tmp_path) == str(tmp_path / "x::y")


def test_only_paths_below_with_and_the_output_are_anchored(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    given = {
        "path": "model",
        "losses": [
            {"with": {"config": "model", "name": "model", "parts": [{"path": Path("model")}]}}
        ],
        "output": {"path": "s3://b/model"},
    }
    assert make_paths_absolute(given, (), tmp_path) == {
        "path": "model",
        "losses": [
            {
                "with": {
                    "config": f"{tmp_path}/model",
                    "name": "model",
                    "parts": [{"path": f"{tmp_path}/model"}],
                }
            }
        ],
        "output": {"path": "s3://b/model"},
    }

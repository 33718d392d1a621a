"""Recipes: what one may say, what it says when nothing is said, and one line per mistake."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from latentkit.builtin import latentkit_tasks
from latentkit.errors import RecipeError
from latentkit.recipe.schema import (
    EncodeRecipe,
    LossUse,
    Recipe,
    TrainRecipe,
    dump_recipe,
    load_recipe,
    parse_recipe,
    resolve,
)

ENCODE = """
task: encode
source:   {use: folder, with: {path: photos}}
modality: {use: image, with: {size: 256, crop: center, views: [plain, hflip]}}
encoder:  {use: diffusers, with: {model: stabilityai/sd-vae-ft-mse, dtype: float32}}
output:   {path: latents/photos, store: moments, dtype: float16, unit_size: auto}
batch_size: auto
executor: {use: auto}
preview: 8
seed: 0
"""
TRAIN = """
task: train
source:   {use: folder, with: {path: photos}}
modality: {use: image, with: {size: 256, crop: random, views: [plain, hflip]}}
model:    {use: diffusers, with: {config: vae.json}, train: all}
losses:
  - {use: l1}
  - {use: kl, weight: 1e-6}
optimizer: {lr: 4.5e-6, betas: [0.5, 0.9], weight_decay: 0.0, schedule: constant, warmup: 0, clip: 1.0}
steps: 100000
batch_size: 8
accumulate: 1
precision: bf16
ema: {decay: 0.999}
output:   {path: runs/vae, checkpoint_every: 1000}
seed: 0
"""


def write(folder: Path, text: str = ENCODE, name: str = "photos.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def encode(folder: Path, *overrides: str) -> EncodeRecipe:
    recipe = load_recipe(write(folder), overrides)
    assert isinstance(recipe, EncodeRecipe)
    return recipe


def output_path(recipe: Recipe) -> str:
    assert isinstance(recipe, EncodeRecipe | TrainRecipe)
    return recipe.output.path


def configured_encodes(folder: Path, text: str, *overrides: str) -> list[str]:
    file = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, overrides)
    return [line.removeprefix(f"{file}: ") for line in str(caught.value).splitlines()]


def test_the_encode_recipe_of_the_design_is_read(tmp_path: Path) -> None:
    recipe = encode(tmp_path)
    assert (recipe.source.use, recipe.source.with_) == ("folder", {"path": "photos"})
    assert recipe.encoder is not None
    assert recipe.encoder.with_ == {"model": "stabilityai/sd-vae-ft-mse", "dtype": "float32"}
    assert recipe.output.path == str(tmp_path / "latents/photos")
    assert (recipe.origin, recipe.base_dir) == (str(tmp_path / "photos.yaml"), tmp_path)
    assert [(kind, where, use.use) for kind, where, use in recipe.uses()] == [
        ("source", "source", "folder"),
        ("modality", "modality", "image"),
        ("encoder", "encoder", "diffusers"),
    ]


def test_what_an_encode_recipe_leaves_out_has_the_documented_value(tmp_path: Path) -> None:
    minimal = {
        "task": "encode",
        "source": {"use": "s"},
        "modality": {"use": "m"},
        "encoder": {"use": "e"},
        "output": {"path": "o"},
    }
    recipe = parse_recipe(minimal, "minimal", tmp_path)
    assert resolve(recipe) == {
        "task": "encode",
        "source": {"use": "s", "with": {}},
        "modality": {"use": "m", "with": {}},
        "encoder": {"use": "e", "with": {}},
        "output": {"path": ".", "store": "moments", "dtype": "float16", "unit_size": "auto"},
        "batch_size": "auto",
        "threads": "auto",
        "compile": "auto",
        "executor": {"use": "auto", "with": {}},
        "on_overflow": "skip",
        "preview": 8,
        "seed": 0,
        "on_bad_sample": "skip",
        "max_bad": 0.05,
    }


def test_the_train_recipe_of_the_design_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, TRAIN))
    assert isinstance(recipe, TrainRecipe)
    assert [(loss.use, loss.weight) for loss in recipe.losses] == [("l1", 1.0), ("kl", 1e-6)]
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.clip) == (
        4.5e-6,
        (0.5, 0.9),
        1.0,
    )
    assert recipe.ema is not None
    assert (recipe.steps, recipe.precision, recipe.ema.decay) == (100_000, "bf16", 0.999)
    assert [(kind, where) for kind, where, _ in recipe.uses()][2:] == [
        ("encoder", "model"),
        ("loss", "losses[0]"),
        ("loss", "losses[1]"),
    ]


def test_a_recipe_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        encode(tmp_path).seed = 1  # type: ignore[misc]


MISTAKES = [
    (["previw=3"], ["previw: unknown key, did you mean 'preview'?"]),
    (["output.dtpe=float16"], ["output.dtpe: unknown key, did you mean 'dtype'?"]),
    (["source.wth={}"], ["source.wth: unknown key, did you mean 'with'?"]),
    (["source.zzz=1"], ["source.zzz: unknown key; known: use, with"]),
    (["source.with_={}"], ["source.with_: unknown key, did you mean 'with'?"]),
    (
        ["output.dtype=flaot16"],
        [
            "output.dtype: expected 'float16', 'bfloat16', 'float32' or 'int8', got 'flaot16', did"
            " you mean 'float16'?"
        ],
    ),
    (["batch_size=0"], ["batch_size: expected 'auto' or a number of at least 1, got 0"]),
    (
        ["batch_size=atuo"],
        ["batch_size: expected 'auto' or a whole number, got 'atuo', did you mean 'auto'?"],
    ),
    (["batch_size='8'"], ["batch_size: expected 'auto' or a whole number, got '8'"]),
    (["batch_size=true"], ["batch_size: expected 'auto' or a whole number, got true"]),
    (["compile=no"], ["compile: expected 'auto' or true or false, got 'no'"]),
    (["seed=1.5"], ["seed: expected a whole number, got 1.5"]),
    (["seed=-1"], ["seed: expected a number of at least 0, got -1"]),
    (["max_bad=5"], ["max_bad: expected a number of at most 1.0, got 5"]),
    (["source=folder"], ["source: expected a mapping, got 'folder'"]),
    (["source.with=[a]"], ['source.with: expected a mapping, got ["a"]']),
    (["source={with: {}}"], ["source.use: missing; expected name of the plugin"]),
    (
        ["output={}"],
        ["output.path: missing; expected folder of the latent dataset; relative to the recipe"],
    ),
    (["output=null"], ["output: expected a mapping, got null"]),
    (["encoder=null"], ["expected one of encoder and encoders, got neither"]),
    (["encoders={a: {use: tiny-kl}}"], ["expected one of encoder and encoders, got both"]),
    (
        ["executor.with={device: cpu}"],
        ["executor.with: options need a named executor, and use is 'auto'"],
    ),
    (
        ["task=encod"],
        ["task: expected encode, train, evaluate, sample, interpolate, augment, augment-study or score, got 'encod', did you mean 'encode'?"],
    ),
    (["task=3"], ["task: expected encode, train, evaluate, sample, interpolate, augment, augment-study or score, got 3"]),
    (
        ["seed=x", "preview=-1"],
        [
            "seed: expected a whole number, got 'x'",
            "preview: expected a number of at least 0, got -1",
        ],
    ),
]


@pytest.mark.parametrize(("overrides", "expected"), MISTAKES)
def test_every_mistake_is_one_line_with_its_key(
    overrides: list[str], expected: list[str], tmp_path: Path
) -> None:
    assert configured_encodes(tmp_path, ENCODE, *overrides) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["losses=[]"], "losses: expected a length of at least 1, got []"),
        (["losses[1].weigt=1"], "losses[1].weigt: unknown key, did you mean 'weight'?"),
        (["losses[1].weight=-1"], "losses[1].weight: expected a number of at least 0.0, got -1"),
        (["losses[1].weight=.inf"], "losses[1].weight: expected a finite number, got Infinity"),
        (["losses[1].adaptiv=true"], "losses[1].adaptiv: unknown key, did you mean 'adaptive'?"),
        (["optimizer.lr=1e-6x"], "optimizer.lr: expected a number, got '1e-6x'"),
        (["optimizer.betas=[0.5]"], "optimizer.betas[1]: missing"),
        (
            ["optimizer.betas=[0.5, 1]"],
            "optimizer.betas: expected two numbers below 1, got [0.5, 1]",
        ),
        (
            ["optimizer.betas=[1, 2, 3]"],
            "optimizer.betas: expected a length of at most 2, got [1, 2, 3]",
        ),
        (["steps=1e5"], "steps: expected a whole number, got 100000.0"),
        (["ema.decay=1"], "ema.decay: expected a number below 1.0, got 1"),
        (["encoder={use: tiny-kl}"], "encoder: unknown key; known: "),
    ],
)
def test_a_mistake_in_a_train_recipe_is_one_line_with_its_key(
    overrides: list[str], expected: str, tmp_path: Path
) -> None:
    (line,) = configured_encodes(tmp_path, TRAIN, *overrides)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("text", "got"),
    [("", "nothing"), ("- task: encode", "a list"), ("encode", "'encode'"), ("3", "3")],
)
def test_a_file_that_is_no_mapping_is_refused(text: str, got: str, tmp_path: Path) -> None:
    assert configured_encodes(tmp_path, text) == [
        f"expected a mapping that starts with 'task:', got {got}"
    ]


def test_a_recipe_without_a_task_names_the_tasks(tmp_path: Path) -> None:
    assert configured_encodes(tmp_path, "source: {use: folder}") == [
        "task: missing; expected encode, train, evaluate, sample, interpolate, augment, augment-study or score"
    ]


def test_several_encoders_are_named_by_folders_that_are_safe(tmp_path: Path) -> None:
    several = ENCODE.replace("encoder:  {", "encoders: {a: {use: tiny-kl}, sd-1_5: {").replace(
        "float32}}", "float32}}}"
    )
    recipe = load_recipe(write(tmp_path, several))
    assert [(where, use.use) for kind, where, use in recipe.uses() if kind == "encoder"] == [
        ("encoders.a", "tiny-kl"),
        ("encoders.sd-1_5", "diffusers"),
    ]
    for name in ("../a", ".", "..", "a/b", "a.b", "-a", "", "a b", "ä"):
        values: dict[str, Any] = {
            "task": "encode",
            "encoders": {name: {"use": "e"}},
            "source": {"use": "s"},
            "modality": {"use": "m"},
            "output": {"path": "o"},
        }
        with pytest.raises(RecipeError, match="encoders: names become folders"):
            parse_recipe(values, "recipe", tmp_path)
    with pytest.raises(RecipeError, match="upper and lower case"):
        load_recipe(write(tmp_path, several), ["encoders.A={use: tiny-kl}"])
    with pytest.raises(RecipeError, match=r"encoders: expected a length of at least 1, got \{\}"):
        load_recipe(write(tmp_path, several), ["encoders={}"])


def test_a_path_starts_from_the_recipe_and_a_typed_one_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = write(tmp_path)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert output_path(load_recipe(os.path.relpath(file))) == str(tmp_path / "latents/photos")
    assert output_path(load_recipe(file, ["output.path=mine"])) == str(tmp_path / "elsewhere/mine")
    assert output_path(load_recipe(file, ["output.path=s3://bucket/mine"])) == "s3://bucket/mine"


def test_overrides_from_python_take_ready_values(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path),
        {"batch_size": 64, "modality.with.size": (64, 96), "output.path": tmp_path / "mine"},
    )
    assert resolve(recipe)["batch_size"] == 64
    assert recipe.modality.with_["size"] == [64, 96]
    assert output_path(recipe) == str(tmp_path / "mine")
    with pytest.raises(
        RecipeError, match=r"photos\.yaml: expected numbers, texts, lists and mappings"
    ):
        load_recipe(write(tmp_path), {"seed": object()})
    with pytest.raises(RecipeError, match="not valid Unicode"):
        load_recipe(write(tmp_path), {"source.with.path": "\udcff"})


@pytest.mark.parametrize("text", [ENCODE, TRAIN])
def test_the_resolved_recipe_reads_back_as_itself_from_inside_its_output(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "vae.json").write_text("{}")
    recipe = load_recipe(write(tmp_path, text))
    resolved = resolve(recipe)
    assert resolved["source"]["with"] == {"path": str(tmp_path / "photos")}
    output = Path(output_path(recipe))
    output.mkdir(parents=True)
    again = load_recipe(write(output, dump_recipe(resolved), "recipe.yaml"))
    assert resolve(again) == resolved
    assert output_path(again) == str(output)
    assert list(resolved)[-3:] == ["seed", "on_bad_sample", "max_bad"]


def test_a_resolved_recipe_keeps_hub_ids_urls_and_odd_values(tmp_path: Path) -> None:
    recipe = encode(
        tmp_path,
        "output.path=s3://bucket/out",
        "source.with={path: owner/name, text: 'no', number: -.inf}",
    )
    resolved = resolve(recipe)
    assert resolved["output"]["path"] == "s3://bucket/out"
    assert resolved["source"]["with"] == {"path": "owner/name", "text": "no", "number": -math.inf}
    assert resolve(load_recipe(write(tmp_path, dump_recipe(resolved), "again.yaml"))) == resolved


def models_below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for child in model.__subclasses__():
        yield from models_below(child)


def test_every_key_of_every_recipe_is_described() -> None:
    [base] = [base for base in Recipe.__mro__ if base.__name__ == "RecipePart"]
    recipes = {spec.recipe for spec in latentkit_tasks()}  # some load on first use
    parts = {part for part in models_below(base) if part.__module__.startswith("latentkit.")}
    assert {*recipes, LossUse} <= parts
    bare = [
        f"{part.__name__}.{name}"
        for part in parts
        for name, field in part.model_fields.items()
        if not field.description
    ]
    assert bare == []

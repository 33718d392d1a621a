"""Checking a recipe: every plugin it uses is found and configured, and nothing is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentkit.errors import PluginError, RecipeError
from latentkit.losses.options import KlConfig
from latentkit.plugins import discover
from latentkit.recipe.schema import Recipe, parse_recipe
from latentkit.sources.options import FolderConfig
from latentkit.tasks.check_recipe import check_recipe


def train(**changes: Any) -> Recipe:
    values = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": "there/is/no/such/folder"}},
        "modality": {"use": "image"},
        "model": {"use": "tiny-kl"},
        "losses": [{"use": "l1"}, {"use": "kl", "weight": 1e-6}],
        "steps": 10,
        "output": {"path": "runs/vae"},
    }
    return parse_recipe({**values, **changes}, "vae.yaml", Path())


def test_every_use_comes_back_configured_in_the_order_of_the_recipe() -> None:
    found = check_recipe(train(), discover())
    assert [(one.where, one.kind, one.provided.spec.name) for one in found] == [
        ("source", "source", "folder"),
        ("modality", "modality", "image"),
        ("model", "encoder", "tiny-kl"),
        ("losses[0]", "loss", "l1"),
        ("losses[1]", "loss", "kl"),
    ]
    assert found[0].config == FolderConfig(path="there/is/no/such/folder")
    assert found[4].config == KlConfig()


def test_the_problems_of_all_plugins_are_told_together() -> None:
    recipe = train(
        source={"use": "folder"},
        modality={"use": "image", "with": {"sizee": 1, "crop": "mid"}},
        losses=[{"use": "l3"}],
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe, discover())
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        (
            "vae.yaml: source.with.path: missing; expected folder to read, relative to the recipe,"
            " or its URL, such as s3://bucket/photos"
        ),
        "vae.yaml: modality.with.crop: expected 'center', 'random' or 'none', got 'mid'",
        "vae.yaml: modality.with.sizee: unknown key, did you mean 'size'?",
    ]
    assert lines[3].startswith("vae.yaml: losses[0].use: no loss is named 'l3'")


def test_a_missing_plugin_alone_is_a_plugin_error() -> None:
    with pytest.raises(
        PluginError,
        match=r"^vae\.yaml: model\.use: no encoder is named 'tiny-lk', did you mean 'tiny-kl'\?",
    ):
        check_recipe(train(model={"use": "tiny-lk"}), discover())


def test_an_executor_left_to_choose_itself_is_no_plugin_and_a_named_one_is() -> None:
    values: dict[str, Any] = {
        "task": "encode",
        "source": {"use": "sample-photos"},
        "modality": {"use": "image"},
        "output": {"path": "out"},
    }
    encoders = {"a": {"use": "tiny-kl"}, "b": {"use": "tiny-kl", "with": {"dtype": "bfloat16"}}}
    found = check_recipe(parse_recipe({**values, "encoders": encoders}, "r", Path()), discover())
    assert [one.where for one in found] == ["source", "modality", "encoders.a", "encoders.b"]
    executor = {"use": "local", "with": {"device": "cpu"}}
    found = check_recipe(
        parse_recipe({**values, "encoders": encoders, "executor": executor}, "r", Path()),
        discover(),
    )
    assert found[-1].config.device == "cpu"


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            [{"use": "l1", "schedule": {"until": 3}}, {"use": "mse", "schedule": {"start": 4}}],
            "losses: no reconstruction loss is active in steps 4 to 4;",
        ),
        ([{"use": "l1", "schedule": {"until": 3}}], "losses: no reconstruction loss is active in steps 4 to 10;"),
        ([{"use": "l1", "weight": 0}], "losses: no reconstruction loss is active in steps 1 to 10;"),
        ([{"use": "l1", "adaptive": True}], "losses: no reconstruction loss is active in steps 1 to 10;"),
        (
            [{"use": "l1"}, {"use": "patch-gan", "schedule": {"start": 10}}],
            r"losses\[1\].schedule.start: patch-gan would start after 10",
        ),
        (
            [{"use": "l1"}, {"use": "kl", "optimizer": {"lr": 1e-4}}],
            r"losses\[1\].optimizer: kl has no discriminator",
        ),
    ],
)
def test_losses_that_would_leave_steps_without_any_are_refused(
    losses: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_recipe(train(losses=losses), discover())


@pytest.mark.parametrize(
    "losses",
    [
        [{"use": "l1", "schedule": {"until": 3}}, {"use": "mse", "schedule": {"start": 3}}],
        [{"use": "mse", "schedule": {"start": 2}}, {"use": "l1", "schedule": {"until": 5}}],
        [{"use": "l1"}, {"use": "mse", "schedule": {"start": 2, "until": 4}}],
    ],
)
def test_losses_that_take_turns_are_a_run(losses: list[dict[str, Any]]) -> None:
    assert check_recipe(train(losses=losses), discover())

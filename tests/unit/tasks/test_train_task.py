"""From a train recipe to its run: defaults, what is passed on, and what is refused before the first
step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest

import latentkit
from latentkit.cli.closing_words import report_training
from latentkit.encoders.tiny_kl import TinyKLEncoder
from latentkit.errors import LatentkitError, RecipeError, SourceError, StoreError, TrainingError
from latentkit.recipe.schema import parse_recipe
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint


@pytest.fixture
def recipe(make_photos: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    """Values of a small run in tmp_path/run."""
    return {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(make_photos(4))}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "tiny-kl", "with": {"init": "random"}},
        "losses": [{"use": "mse"}],
        "steps": 2,
        "batch_size": 2,
        "output": {"path": str(tmp_path / "run"), "checkpoint_every": 1},
    }


GAN = {"use": "patch-gan", "weight": 0.5, "with": {"num_layers": 1, "width": 8}}


def last_state(folder: Path) -> dict[str, Any]:
    return dict(read_checkpoint(list_checkpoints(folder / "checkpoints")[-1]).state)


def test_every_option_reaches_the_run(recipe: dict[str, Any], tmp_path: Path) -> None:
    options = {
        "losses": [
            {"use": "mse"},
            {"use": "l1", "schedule": {"start": 1}},
            {**GAN, "optimizer": {"lr": 3e-3}},
        ],
        "optimizer": {"lr": 1e-3, "clip": None},
        "accumulate": 2,
        "precision": "bf16",
        "ema": {"decay": 0.5},
        "max_bad_steps": 7,
        "compile": False,
        "sizes": [32, 48],
        "output": {**recipe["output"], "keep": 1},
    }
    latentkit.run(recipe | options)
    state = last_state(tmp_path / "run")
    found = state["settings"]
    expected = {
        "accumulate": 2,
        "precision": "bf16",
        "ema_decay": 0.5,
        "max_bad_steps": 7,
        "keep": 1,
        "checkpoint_every": 1,
    }
    assert {name: found[name] for name in expected} == expected
    assert (found["optimizer"]["lr"], found["optimizer"]["clip"]) == (1e-3, None)
    assert state["discriminators"]["patch-gan"]["step"] == 2
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


def test_a_discriminator_without_an_optimizer_is_trained_as_the_model(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    latentkit.run(recipe | {"losses": [{"use": "mse"}, GAN], "optimizer": {"lr": 2e-3}})
    lines = [
        line
        for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()
        if '"patch-gan"' in line
    ]
    assert '"lr": 0.002' in lines[-1].split('"discriminators"')[1]


def test_random_weights_of_a_loss_follow_from_the_seed(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    weights = []
    for name in ("first", "second"):
        latentkit.run(
            recipe | {"losses": [{"use": "mse"}, GAN], "output": {"path": str(tmp_path / name)}}
        )
        (path,) = list_checkpoints(tmp_path / name / "checkpoints")
        weights.append((path / "discriminator.patch-gan.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"batch_size": 5}, TrainingError, r"4 samples, fewer than one batch \(batch_size 5\)"),
        (
            {"modality": {"use": "image", "with": {"size": 32, "min_size": 64}}},
            SourceError,
            "48 x 48 pixels .* too small: min_size is 64",
        ),
        (
            {"modality": {"use": "image", "with": {"min_size": 64}}, "on_bad_sample": "fail"},
            SourceError,
            r"sample '000\.png' can't be used: .* too small",
        ),
        (
            {"losses": [{"use": "mse", "optimizer": {"lr": 1}}]},
            RecipeError,
            r"losses\[0\].optimizer: mse has no discriminator",
        ),
        (
            {"losses": [{"use": "kl", "weight": 1e-6}]},
            RecipeError,
            "no reconstruction loss is active in steps 1 to 2; training needs a reconstruction"
            " loss",
        ),
        (
            {
                "modality": {"use": "image", "with": {"size": 8}},
                "losses": [{"use": "mse"}, {"use": "patch-gan", "schedule": {"start": 1}}],
            },
            TrainingError,
            "'patch-gan' takes sides of at least 24, the samples have",
        ),
        ({"losses": [{"use": "mse"}, {"use": "patch-gam"}]}, LatentkitError, "patch-gan"),
        (
            {"log": ["clearml"]},
            TrainingError,
            "the tracker 'clearml' isn't installed; pip install clearml",
        ),
        (
            {"gradient_checkpointing": True},
            TrainingError,
            "gradient_checkpointing: the model doesn't support it",
        ),
    ],
)
def test_what_cant_be_trained_is_one_message_before_the_first_step(
    recipe: dict[str, Any],
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        latentkit.run(recipe | changes)
    assert list_checkpoints(tmp_path / "run" / "checkpoints") == []
    assert not (tmp_path / "run" / "model").exists()


def test_pictures_below_the_size_are_told_of_before_the_first_step(
    recipe: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The pictures have 48 pixels a side."""
    for size, output in ((64, "large"), (48, "exact")):
        modality = {"use": "image", "with": {"size": size}}
        latentkit.run(recipe | {"modality": modality, "output": {"path": str(tmp_path / output)}})
        said = (
            "warning: 4 of 4 images that were tried are smaller than the size they are"
            " prepared to"
            in capfd.readouterr().err
        )
        assert said == (output == "large")


def test_a_share_of_bad_samples_that_would_end_the_run_ends_it_before_the_first_step(
    recipe: dict[str, Any], tmp_path: Path, make_photos: Callable[..., Path]
) -> None:
    photos = make_photos(30, "mixed")
    for number in range(15):
        (photos / f"{2 * number:03d}.png").write_bytes(b"no picture")
    source = {"use": "folder", "with": {"path": str(photos)}}
    with pytest.raises(
        SourceError,
        match=(
            r"15 of 30 samples that were tried before the first step can't be used: .*\(15 times\),"
            r" .*, such as 000\.png, 002\.png, 004\.png"
        ),
    ):
        latentkit.run(recipe | {"source": source})
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_sample_that_the_source_cannot_give_is_left_out_and_recorded(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    photos = Path(recipe["source"]["with"]["path"])
    first = min(photos.glob("*.png"))
    first.with_suffix(".txt").write_bytes(b"\xff\x81\xfe")
    latentkit.run(recipe)
    left_out = json.loads((tmp_path / "run" / "result.json").read_text())["left_out"]
    assert (list(left_out), left_out[first.name].partition(" can't")[0]) == (
        [first.name],
        f"its caption {first.stem}.txt",
    )


def test_a_loss_that_needs_a_posterior_is_refused_for_a_model_without_one(
    recipe: dict[str, Any], tmp_path: Path, taesd_folder: Path
) -> None:
    model = {"use": "diffusers", "with": {"model": str(taesd_folder)}}
    for schedule in ({}, {"start": 1}):
        losses = [{"use": "mse"}, {"use": "kl", "schedule": schedule}]
        with pytest.raises(TrainingError, match=r"the model has no posterior .*leave the loss out"):
            latentkit.run(recipe | {"model": model, "losses": losses})
        assert not (tmp_path / "run" / "checkpoints").exists()


def test_losses_are_told_what_the_model_takes(recipe: dict[str, Any], tmp_path: Path) -> None:
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    gray = diffusers.AutoencoderKL(1, 1, block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    gray.save_pretrained(tmp_path / "gray")
    latentkit.run(
        recipe | {
            "model": {"use": "diffusers", "with": {"model": str(tmp_path / "gray")}},
            "losses": [{"use": "mse"}, GAN],
        }
    )
    tensors = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).tensors[
        "discriminator.patch-gan"
    ]
    assert (
        tensors["layers.0.weight"].shape[1] == 1
    ), "the discriminator sees pictures of one channel"


def test_a_modality_that_the_model_doesnt_take_is_refused(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TinyKLEncoder, "modality", "video")
    with pytest.raises(RecipeError, match=r"modality\.use: the model takes 'video', got 'image'"):
        latentkit.run(recipe)


def test_a_recipe_mended_before_the_first_checkpoint_may_use_the_same_output(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="fewer than one batch"):
        latentkit.run(recipe | {"batch_size": 5, "losses": [{"use": "l1"}]})
    latentkit.run(recipe)
    with pytest.raises(
        TrainingError,
        match=(
            r"run contains another run: losses\[0\]\.use was '.*' and is 'l1'.*\. Choose another"
            r" output.path"
        ),
    ):
        latentkit.run(recipe | {"losses": [{"use": "l1"}]})


def test_a_finished_run_says_which_settings_change_nothing_and_keeps_its_recipe(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latentkit.run(recipe)
    written = (tmp_path / "run" / "recipe.yaml").read_bytes()
    latentkit.run(recipe | {"optimizer": {"lr": 0.125}})
    warning = (
        r"warning: .*run is finished, so this changes nothing: optimizer\.lr was [\d.e-]+ and is"
        r" 0\.125"
    )
    assert re.search(warning, capsys.readouterr().err)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == written


def test_samples_that_are_left_out_are_recorded_with_the_reason(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    photos = Path(recipe["source"]["with"]["path"])
    (photos / "page.png").write_text("<html>")
    result = latentkit.run(recipe)
    assert result.num_bad_samples == 1
    (left_out,) = json.loads((tmp_path / "run" / "result.json").read_text())["left_out"].items()
    assert left_out[0] == "page.png"
    assert "1 samples left out" in report_training(result)


def test_a_run_killed_while_it_wrote_its_recipe_begins_again(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run" / ".incoming").mkdir(parents=True)
    latentkit.run(recipe)
    assert (tmp_path / "run" / "recipe.yaml").exists()


def test_a_folder_of_something_else_is_left_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"contains other files and no recipe\.yaml"):
        latentkit.run(recipe)


def test_latents_are_a_path_from_the_recipe_and_typed_from_here(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    values = {name: value for name, value in recipe.items() if name != "modality"}
    values |= {"latents": "photos", "model": {**recipe["model"], "train": "decoder"}}
    assert parse_recipe(values, "here", tmp_path / "recipes").latents == str(tmp_path / "recipes" / "photos")  # type: ignore[attr-defined]
    assert parse_recipe(values, "here", tmp_path, ["latents=other"]).latents == str(Path.cwd() / "other")  # type: ignore[attr-defined]


def test_a_schedule_that_ends_before_it_starts_is_refused(recipe: dict[str, Any]) -> None:
    losses = [{"use": "mse"}, {"use": "l1", "schedule": {"start": 5, "until": 5}}]
    with pytest.raises(
        RecipeError, match=r"losses\[1\]\.schedule.*until: expected more than start"
    ):
        latentkit.run(recipe | {"losses": losses})

"""What a launcher asks for by its environment is followed, or refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import latentkit
from latentkit.errors import LatentkitError
from latentkit.runtime.launcher import check_launcher, launched_precision
from latentkit.runtime.yaml_files import dump_yaml, parse_yaml
from latentkit.training.checkpoint import list_checkpoints, read_checkpoint


@pytest.fixture
def recipe(make_photos: Callable[..., Path], tmp_path: Path) -> dict[str, Any]:
    """Values of a run of one step in tmp_path/run."""
    return {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(make_photos(2))}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": {"use": "tiny-kl", "with": {"init": "random"}},
        "losses": [{"use": "mse"}],
        "steps": 1,
        "batch_size": 2,
        "output": {"path": str(tmp_path / "run")},
    }


def find_precisions(run: Path) -> tuple[str, str]:
    """What the run computed in, and what its recipe.yaml says."""
    checkpoint = read_checkpoint(list_checkpoints(run / "checkpoints")[-1])
    written: Any = parse_yaml((run / "recipe.yaml").read_text(), "recipe.yaml")
    return checkpoint.state["settings"]["precision"], written["precision"]


def test_a_recipe_without_a_precision_has_the_launchers(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    latentkit.run(recipe)
    assert find_precisions(tmp_path / "run") == ("bf16", "bf16")
    assert "the recipe names no precision, so the launcher's is used: bf16" in capfd.readouterr().err


def test_a_recipes_own_precision_counts_and_the_difference_is_said(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    latentkit.run(recipe | {"precision": "float32"})
    assert find_precisions(tmp_path / "run") == ("float32", "float32")
    text = capfd.readouterr().err
    assert (
        "the launcher asks for mixed precision fp16, the recipe for float32, which is used"
        in text
    )
    assert "the launcher asks for 4 passes per step, the recipe for 1, which is used" in text


def test_accelerate_launch_itself_is_followed(recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(dump_yaml(recipe))
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes=1",
        "--num_machines=1",
    ]
    options = [
        "--mixed_precision=bf16",
        "--dynamo_backend=no",
        "-m",
        "latentkit",
        "run",
        "train.yaml",
    ]
    environment = os.environ | {"ACCELERATE_CONFIG_FILE": os.devnull, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *options], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert find_precisions(tmp_path / "run") == ("bf16", "bf16")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"FSDP \(--use_fsdp\).* --multi_gpu, or with torchrun"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"DeepSpeed \(--use_deepspeed\).* --multi_gpu"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", r"Megatron-LM \(--use_megatron_lm\).* --multi_gpu"),
        (
            "ACCELERATE_USE_PARALLELISM_CONFIG",
            "true",
            r"\(--use_parallelism_config\).* --multi_gpu",
        ),
        ("ACCELERATE_IN_TPU_POD", "1", r"TPUs \(--tpu\)"),
        ("ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE", "DATA_PARALLEL", "SageMaker's own"),
        (
            "ACCELERATE_DYNAMO_BACKEND",
            "INDUCTOR",
            r"compiler INDUCTOR .* set compile: true in the recipe",
        ),
        (
            "ACCELERATE_MIXED_PRECISION",
            "fp8",
            "mixed precision fp8.* Launch with --mixed_precision bf16, fp16 or no",
        ),
    ],
)
@pytest.mark.parametrize("task", ["train", "encode"])
def test_what_a_launcher_cant_have_is_refused_by_name_before_anything_is_built(
    recipe: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    variable: str,
    value: str,
    message: str,
) -> None:
    monkeypatch.setenv(variable, value)
    encode = {key: recipe[key] for key in ("source", "modality", "output")} | {
        "encoder": {"use": "tiny-kl"}
    }
    with pytest.raises(LatentkitError, match=message):
        latentkit.run(recipe if task == "train" else encode | {"task": "encode"})
    assert not (tmp_path / "run").exists()


def test_a_launchers_precision_is_said_to_be_no_encoders(
    make_photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    latentkit.encode(make_photos(2), tmp_path / "latents", encoder="tiny-kl", size=32)
    assert "the launcher's mixed precision bf16 is only for training" in capfd.readouterr().err


def test_what_accelerate_sets_by_default_asks_for_nothing() -> None:
    plain = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_FSDP": "false",
    }
    check_launcher(plain)
    assert launched_precision(plain) is None
    assert launched_precision({}) is None

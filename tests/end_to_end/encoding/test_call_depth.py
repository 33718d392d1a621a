"""How deep the work lies: few frames of latentkit between a command and the model it runs.

What a user reads in a traceback, and steps through in a debugger, is these frames.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import latentkit
from latentkit.cli import main
from latentkit.encoders.tiny_kl import TinyKLEncoder

ROOT = str(Path(latentkit.__file__).parent)
MOST_FRAMES = {"encode": 10, "train": 8}
"""From `main` to the model, both commands and `main` itself counted."""
ABOVE_RUN_RECIPE = 2
"""`main`, and the command."""


def frames_below_run_recipe() -> list[str]:
    """Names of latentkit's functions that are running, from `run_recipe` on."""
    stack = traceback.walk_stack(None)  # inspect.stack reads the source of every frame
    codes = [frame.f_code for frame, _ in stack]
    names = [code.co_name for code in codes if code.co_filename.startswith(ROOT)]
    return names[: names.index("run_recipe") + 1][::-1]


@pytest.fixture
def run(make_photos: Callable[..., Path], tmp_path: Path) -> Callable[..., int]:
    """What runs a recipe of this task from the command line; its exit code."""

    def run_task(task: str, **keys: Any) -> int:
        recipe = tmp_path / f"{task}.yaml"
        values = {
            "task": task,
            "source": {"use": "folder", "with": {"path": str(make_photos(4))}},
            "modality": {"use": "image", "with": {"size": 32}},
            "output": {"path": str(tmp_path / "out")},
            "batch_size": 2,
            **keys,
        }
        recipe.write_text(yaml.safe_dump(values))
        return main(["run", str(recipe), "--device", "cpu"])

    return run_task


def test_from_the_command_to_the_encoder(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, seen = TinyKLEncoder.encode, []

    def watched(self: TinyKLEncoder, batch: Any) -> Any:
        seen.append(frames_below_run_recipe())
        return encode(self, batch)

    monkeypatch.setattr(TinyKLEncoder, "encode", watched)
    keys = {"encoder": {"use": "tiny-kl"}, "threads": 1, "compile": False, "preview": 0}
    assert run("encode", **keys) == 0
    in_the_run = [names for names in seen if "encode_source" in names and "_work" in names]
    assert in_the_run
    assert all(len(names) + ABOVE_RUN_RECIPE <= MOST_FRAMES["encode"] for names in in_the_run), seen


def test_from_the_command_to_the_models_forward(
    run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watch(module: nn.Module, inputs: Any) -> None:
        seen.append(frames_below_run_recipe())

    handle = register_module_forward_pre_hook(watch)
    try:
        keys = {"model": {"use": "tiny-kl"}, "losses": [{"use": "l1"}], "steps": 2}
        assert run("train", **keys) == 0
    finally:
        handle.remove()
    to_forward = [names for names in seen if names[-1] == "model_pass"]
    assert len(to_forward) == 2, seen
    assert all(len(names) + ABOVE_RUN_RECIPE <= MOST_FRAMES["train"] for names in to_forward), seen

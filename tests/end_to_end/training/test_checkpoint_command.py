"""`latentkit checkpoint`: the model of any checkpoint of a run as a folder that loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import latentkit as lk
from latentkit.cli.main import main


def train(photos: Path, output: Path, model: dict[str, Any], **keys: Any) -> Path:
    """The folder of a run of two steps, with a checkpoint of each."""
    recipe = {
        "task": "train",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": 32}},
        "model": model,
        "losses": [{"use": "mse"}],
        "optimizer": {"lr": 0.01},
        "steps": 2,
        "batch_size": 2,
        "output": {"path": str(output), "checkpoint_every": 1},
        **keys,
    }
    lk.run(recipe)
    return output


def test_a_checkpoint_becomes_a_diffusers_folder_with_its_weights(
    make_photos: Callable[..., Path],
    kl_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import diffusers

    model = {"use": "diffusers", "with": {"model": str(kl_folder)}}
    run = train(make_photos(4), tmp_path / "run", model, ema={"decay": 0.9})
    for options, step, stem, kind in (
        ([], 2, "average", "averaged"),
        (["--weights", "raw"], 2, "model", "raw"),
        (["--step", "1"], 1, "average", "averaged"),
    ):
        output = tmp_path / f"{kind}-{step}"
        assert main(["checkpoint", str(run), str(output), *options]) == 0
        assert (
            f"step {step} with {kind} weights; its config has the statistics of latents from before"
            in capsys.readouterr().out
        )
        expected = load_file(run / "checkpoints" / f"step-{step:07d}" / f"{stem}.safetensors")
        found = diffusers.AutoencoderKL.from_pretrained(output).state_dict()
        assert {f"model.{name}" for name in found} == expected.keys()
        assert all(torch.equal(value, expected[f"model.{name}"]) for name, value in found.items())


def test_a_checkpoint_without_an_average_becomes_a_tiny_kl_folder(
    make_photos: Callable[..., Path], tmp_path: Path
) -> None:
    run = train(make_photos(4), tmp_path / "run", {"use": "tiny-kl", "train": "decoder"})
    assert main(["checkpoint", str(run), str(tmp_path / "out")]) == 0
    expected = load_file(run / "checkpoints" / "step-0000002" / "model.safetensors")
    found = load_file(
        tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    )  # which tiny-kl writes as float16
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name].half()) for name, value in found.items())
    lk.encode(make_photos(2, "others"), tmp_path / "latents", encoder=tmp_path / "out", size=32)


def test_what_can_not_be_written_is_one_message(
    make_photos: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train(make_photos(4), tmp_path / "run", {"use": "tiny-kl"})
    monkeypatch.chdir(tmp_path)
    for arguments, message in {
        "run out --step 7": "has no checkpoint of step 7; available: 1, 2",
        "run out --weights average": "has no average of the weights, because the recipe has no ema",
        "run photos": "photos exists already; expected a missing or empty folder",
        "photos out": "photos: expected the folder of a training run with a checkpoint, found none",
    }.items():
        assert main(["checkpoint", *arguments.split()]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

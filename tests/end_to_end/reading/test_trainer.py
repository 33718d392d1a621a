"""A trainer that knows nothing but `latentkit.open` learns from the latents of real photographs."""

from __future__ import annotations

import runpy
from pathlib import Path

import torch

import latentkit as lk

TRAINER = Path(__file__).parents[3] / "recipes" / "train_flow_matching.py"


def test_flow_matching_on_the_sample_photographs_lowers_its_loss(tmp_path: Path) -> None:
    overrides = {"batch_size": 3, "preview": 0, "modality.with.views": ["plain", "hflip"]}
    lk.encode(
        "sample-photos", tmp_path / "latents", encoder="tiny-kl", size=256, overrides=overrides
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        losses = runpy.run_path(str(TRAINER))["train"](str(tmp_path / "latents"), steps=200)
    finally:
        torch.set_num_threads(threads)
    assert sum(losses[-40:]) < 0.85 * sum(losses[:40])


def test_the_trainer_imports_nothing_of_latentkit_but_the_package() -> None:
    text = TRAINER.read_text(encoding="utf-8")
    assert "from latentkit" not in text
    assert text.count("latentkit.open(") == text.count("latentkit.") - text.count("`latentkit.")

"""Every class that trains does so in two processes at once.

Run as a script, this file is one of those processes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentkit.contracts import Entry, Prepared, Sample
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.encoders.diffusers_table import TRAITS
from latentkit.errors import EncoderError
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import mse
from latentkit.training import result as training_result
from latentkit.training.loop import train
from latentkit.training.settings import OptimizerSettings, TrainSettings, WeightedLoss

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())

REFUSED = {"VQModel", "AutoencoderVidTok-fsq", "AutoencoderVidTok-fsq-causal"}
ON_PICTURES = "AutoencoderKLWan-image"
"""A class of videos, trained on pictures: a part of its weights then has nothing to do."""

STEPS = (2, 3)
"""Optimizer steps of the run, and of the same run gone on with."""


@dataclass(frozen=True)
class Noise:
    """Source and modality of two samples of noise.

    Args:
        shape: of one.
        low, high: range of the values.
    """

    shape: Sequence[int]
    low: float
    high: float
    metrics: Sequence[str] = ()

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        draw = torch.Generator().manual_seed(int(sample.read()))
        yield Prepared(
            "plain",
            "",
            self.low + (self.high - self.low) * torch.rand(tuple(self.shape), generator=draw),
        )

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


def train_steps(job: dict[str, Any], steps: int, output: Path) -> dict[str, Tensor]:
    """The parameters after that many steps."""
    folder, modality = Path(job["folder"]), job["modality"]
    model = DiffusersEncoder(folder, None, torch.float32, False, "cpu", modality=modality)
    noise = Noise(job["shape"], *model.input.range)
    losses = [WeightedLoss("mse", mse)] + (
        [WeightedLoss("kl", Kl(), 1e-6, "latent")] if model.layout.kind == "gaussian" else []
    )
    optimizer = OptimizerSettings(lr=1e-3, weight_decay=0.1)
    train(
        model,
        noise,
        noise,
        losses,
        TrainSettings(steps, 1, optimizer=optimizer, **job["options"]),
        output,
    )
    return {
        name: parameter.detach().contiguous() for name, parameter in model.module.named_parameters()
    }


@pytest.fixture(scope="module")
def jobs(tiny: Any) -> dict[str, dict[str, Any]]:
    """By class, its folder, modality, the shape of a sample, and options of the run."""
    plain: dict[str, Any] = {
        name: (name, "", {}) for name in MODELS if "-" not in name and name not in REFUSED
    }
    special = {
        ON_PICTURES: ("AutoencoderKLWan", "image", {}),
        "AutoencoderKL-saving-memory": (
            "AutoencoderKL",
            "",
            {"gradient_checkpointing": True, "accumulate": 2, "precision": "fp16"},
        ),
    }
    return {
        job: {
            "folder": str(tiny.folder(name)),
            "modality": modality,
            "shape": list(tiny.batch(name, modality, rows=1).shape[1:]),
            "options": options,
        }
        for job, (name, modality, options) in (plain | special).items()
    }


@pytest.mark.timeout(600)  # about a minute on two free cores
def test_every_class_trains_in_two_processes_to_equal_weights_also_after_a_resume(
    jobs: dict[str, Any], tmp_path: Path
) -> None:
    assert {name for name, traits in TRAITS.items() if not traits.refused} <= {*jobs, *REFUSED}
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    done = launch(__file__, tmp_path)
    assert done.returncode == 0, done.stderr
    for job in jobs:
        before, after = (
            [load_file(tmp_path / f"{job}-{steps}-{rank}.safetensors") for rank in range(2)]
            for steps in STEPS
        )
        for first, second in (before, after):
            assert [
                name for name, tensor in first.items() if not torch.equal(tensor, second[name])
            ] == [], job
        assert any(
            not torch.equal(tensor, before[0][name]) for name, tensor in after[0].items()
        ), job
    assert (
        "8 of 146 weights (312 numbers) got no gradient in the first step" in done.stderr
    ), "of the class on pictures"
    assert list((tmp_path / "rank-1").rglob("*")) == [], "only the first process looks at its disk"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_codebook_is_refused(name: str, tiny: Any) -> None:
    with pytest.raises(
        EncoderError, match="can't be trained here: its codebook needs special losses"
    ):
        _ = DiffusersEncoder(tiny.folder(name), None, torch.float32, False, "cpu").module


def main(folder: Path) -> None:
    """One of two processes, on every class; each has an output folder of its own, as on machines
    without a shared disk.
    """
    training_result.MAX_MEASURED_SAMPLES = training_result.MAX_PASSES = (
        1  # the statistics of latents don't matter here
    )
    rank = os.environ["RANK"]
    own = folder / f"rank-{rank}"
    own.mkdir()
    for job, values in json.loads((folder / "jobs.json").read_text()).items():
        print(f"training {job}", file=sys.stderr)
        for steps in STEPS:
            weights = train_steps(values, steps, own / job)
            save_file(weights, folder / f"{job}-{steps}-{rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

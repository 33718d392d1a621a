"""Two processes train what one trains with the doubled batch.

Run as a script, this file is one of those processes.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from launching import launch
from safetensors.torch import load_file, save_file
from small_training import Critic, LearnedScale, Model, Numbers
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from latentkit.contracts import LossBatch, Moments, Prepared, Reconstruction, Sample
from latentkit.losses.reconstruction import mse
from latentkit.training.loop import train
from latentkit.training.settings import (
    OptimizerSettings,
    TrainSettings,
    WeightedLoss,
    WeightSchedule,
)

NUM_SAMPLES = 4
"""As many as one step takes in all, so that every step sees all of them in any number of processes.
"""

STEPS = 5


class Pictures:
    metrics: Sequence[str] = ()

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        draw = torch.Generator().manual_seed(int(sample.read()))
        yield Prepared(
            "plain",
            "8x8",
            interpolate(torch.rand(1, 3, 4, 4, generator=draw) * 2 - 1, (8, 8), mode="bilinear")[0],
        )

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


def find_bright(values: Tensor) -> Tensor:
    """Which pictures of a batch are light on average, (N,): one of the four."""
    return values.flatten(1).mean(1) > 0


class Halves(nn.Module):
    """An autoencoder without random draws, with a weight that some batches reach, and one that none
    does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.rare = nn.Parameter(torch.zeros(4, 1, 1))
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, values: Tensor) -> Reconstruction:
        features, is_bright = self.encoder(values), find_bright(values)
        if is_bright.any():
            features = features + self.rare * is_bright[:, None, None, None]
        mean = torch.tanh(features)
        return Reconstruction(self.decode(mean), mean, Moments(mean, torch.zeros_like(mean)))

    def decode(self, latents: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(latents)
        return decoded


def make_model() -> Model:
    """Always the same weights."""
    torch.manual_seed(1)
    return Model(Halves())


def make_critic() -> Critic:
    """Every process draws other weights: the first one's have to count."""
    torch.manual_seed(10 + int(os.environ.get("RANK", "0")))
    return Critic(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.Conv2d(4, 1, 3)))


class BrightScale(LearnedScale):
    """A loss with a weight of its own; it leaves out batches without a light picture."""

    def __call__(self, batch: LossBatch) -> Tensor:
        is_bright = find_bright(batch.inputs)
        found = super().__call__(batch)
        return found * is_bright if is_bright.any() else torch.zeros_like(found)


class Burst:
    """A loss that isn't finite the second time, for the light picture alone."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, batch: LossBatch) -> Tensor:
        self.num_calls += 1
        found = mse(batch)
        is_bad = find_bright(batch.inputs) & (self.num_calls == 2)
        return torch.where(is_bad, math.inf, found)


def smaller_alike(batch: LossBatch) -> Tensor:
    """Decodes and encodes again: the decoded half-size latents are the half-size picture, and are
    encoded to themselves.
    """
    latents = avg_pool2d(batch.reconstruction.latents, 2)
    decoded = batch.decode(latents)
    again = batch.encode(decoded)
    return (decoded - avg_pool2d(batch.inputs, 2)).square().flatten(1).mean(1) + (
        again.mean - latents
    ).square().flatten(1).mean(1)


@dataclass
class Case:
    losses: list[WeightedLoss] = field(default_factory=list)
    accumulate: int = 1
    half: Literal["all", "decoder"] = "all"


def case(name: str) -> Case:
    """A fresh run's losses besides mse, and in how many passes two processes take a step."""
    if name == "accumulated":
        return Case(accumulate=2)
    if name == "again":
        return Case([WeightedLoss("again", smaller_alike, 0.5)])
    if name == "own":
        return Case([WeightedLoss("own", LearnedScale(), 0.1, schedule=WeightSchedule(start=2))])
    if name == "half":
        return Case(half="decoder")
    if name == "skipped":
        return Case([WeightedLoss("burst", Burst(), 0.5)])
    if name == "partly":
        return Case([WeightedLoss("partly", BrightScale(), 0.1, adaptive=True)])
    if name == "critic":
        return Case(
            [
                WeightedLoss(
                    "critic",
                    make_critic(),
                    0.5,
                    "adversarial",
                    adaptive=True,
                    schedule=WeightSchedule(start=1, warmup=2),
                )
            ]
        )
    return Case()


CASES = ("plain", "accumulated", "again", "own", "partly", "critic", "half", "skipped")


def run(name: str, world_size: int, folder: Path) -> dict[str, Tensor]:
    """Every weight at the end, by name."""
    chosen, model = case(name), make_model()
    passes = chosen.accumulate if world_size > 1 else 1
    optimizer = OptimizerSettings(lr=3e-3, weight_decay=0.1, clip=0.05)
    batch_size = NUM_SAMPLES // world_size // passes
    settings = TrainSettings(
        STEPS, batch_size, passes, optimizer=optimizer, train=chosen.half, checkpoint_every=2
    )
    losses = [WeightedLoss("mse", mse), *chosen.losses]
    train(model, Numbers(NUM_SAMPLES), Pictures(), losses, settings, folder / name)
    found = dict(model.module.state_dict())
    for loss in losses:
        for part in ("module", "discriminator"):
            module: Any = getattr(loss.loss, part, None)
            found |= (
                {f"{part}.{key}": tensor for key, tensor in module.state_dict().items()}
                if module is not None
                else {}
            )
    return found


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of two processes, by case: CASE-RANK.safetensors."""
    folder = tmp_path_factory.mktemp("launched")
    done = launch(__file__, folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_same_weights_and_those_of_one_with_the_doubled_batch(
    tmp_path: Path, launched: Path, name: str
) -> None:
    first, second = (load_file(launched / f"{name}-{rank}.safetensors") for rank in range(2))
    alone = run(name, 1, tmp_path)
    assert first.keys() == second.keys() == alone.keys()
    start = make_model().module.state_dict()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        torch.testing.assert_close(value, alone[key].cpu(), rtol=1e-3, atol=1e-5)
    same = {key for key, value in start.items() if torch.equal(first[key], value)}
    frozen = {"encoder.weight", "encoder.bias", "rare"} if name == "half" else set()
    assert same == {"unused"} | frozen, "a weight without a gradient doesn't decay"


def test_no_thread_of_the_process_group_outlives_a_process(launched: Path) -> None:
    """One that is working while the interpreter ends aborts the process, once in some twenty
    launches.
    """
    for rank in range(2):
        assert not [
            name
            for name in (launched / f"threads-{rank}.txt").read_text().split()
            if "gloo" in name
        ]


def write_threads(path: Path) -> None:
    """The names of all threads of this process."""
    path.write_text(
        "\n".join(file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm"))
    )


def main(folder: Path) -> None:
    """One of two processes, on every case."""
    atexit.register(
        write_threads, folder / f"threads-{os.environ['RANK']}.txt"
    )  # first in, so last out
    for name in CASES:
        tensors = {key: value.contiguous() for key, value in run(name, 2, folder).items()}
        save_file(tensors, folder / f"{name}-{os.environ['RANK']}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

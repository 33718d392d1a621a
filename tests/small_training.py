"""Small parts of training runs: samples, modalities, autoencoders and losses that take no time.

Tests that start themselves as scripts, in processes of their own, import it too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from latentkit.contracts import Entry, LossBatch, Moments, Prepared, Reconstruction, Sample
from latentkit.encoders.tiny_kl import TinyKLEncoder
from latentkit.encoders.tiny_kl_network import TinyKL
from latentkit.losses.reconstruction import mse
from latentkit.training.loop import TrainResult, train
from latentkit.training.settings import TrainEvaluation, TrainSettings, WeightedLoss

# ---------------------------------------------------------------- samples


class Numbers:
    """A source of so many samples, whose key and media are their number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(self.count))


class Pictures:
    """Squares of noise that follows from the name."""

    metrics: Sequence[str] = ()

    def __init__(self, side: int) -> None:
        self.side = side

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        draw = torch.Generator().manual_seed(int(sample.read()))
        yield Prepared("plain", "", torch.rand(3, self.side, self.side, generator=draw) * 2 - 1)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


class Noise:
    """Pictures that follow from the key, so that each epoch has its own.

    Args:
        seconds: that preparing one takes.
        views: "plain" or "hflip".
    """

    metrics: Sequence[str] = ()

    def __init__(self, seconds: float = 0.0, views: Sequence[str] = ("plain",)) -> None:
        self.seconds, self.views = seconds, views

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        time.sleep(self.seconds)
        draw = np.random.default_rng([ord(letter) for letter in sample.key])
        coarse = draw.uniform(-1, 1, (3, 2, 2)).astype(np.float32)
        pictures = {"plain": coarse, "hflip": coarse[:, :, ::-1]}
        for view in self.views:
            picture = pictures[view].repeat(8, 1).repeat(8, 2)
            yield Prepared(view, "16x16", torch.from_numpy(picture))

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


# ---------------------------------------------------------------- models


class Halves(nn.Module):
    """An autoencoder without random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, values: Tensor) -> Reconstruction:
        mean = torch.tanh(self.encoder(values))
        return Reconstruction(self.decoder(mean), mean, Moments(mean, torch.zeros_like(mean)))


class Normalized(nn.Module):
    """An autoencoder with running statistics; the latents may be noisy."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.BatchNorm2d(4))
        self.decoder = nn.ConvTranspose2d(4, 3, 2, 2)
        self.noise = noise

    def forward(self, values: Tensor) -> Reconstruction:
        latents = self.encoder(values)
        noisy = latents + self.noise * torch.randn_like(latents) if self.noise else latents
        return Reconstruction(self.decoder(noisy), latents, None)


class Model:
    """A `Trainable` of any autoencoder with a decoder of one layer."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def last_layer(self) -> nn.Parameter:
        return self.module.get_parameter("decoder.weight")

    def save(self, folder: Path) -> None:
        (folder / "model.txt").write_text("")


def small_model(dtype: torch.dtype = torch.float32) -> Any:
    """The smallest autoencoder of the kind `tiny-kl`, always with the same weights."""
    torch.manual_seed(0)
    return TinyKLEncoder(TinyKL((4, 8), (1, 1), (4, 8), (1, 1)), None, dtype, "cpu")


# ---------------------------------------------------------------- losses


class Critic:
    """An adversarial loss, by hinge."""

    def __init__(self, discriminator: nn.Module) -> None:
        self.discriminator = discriminator

    def __call__(self, batch: LossBatch) -> Tensor:
        return -self._score(batch.reconstruction.output)

    def discriminator_loss(self, batch: LossBatch) -> Tensor:
        return relu(1 - self._score(batch.inputs)) + relu(
            1 + self._score(batch.reconstruction.output)
        )

    def _score(self, values: Tensor) -> Tensor:
        score: Tensor = self.discriminator(values).flatten(1).mean(1)
        return score


class LearnedScale:
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        self.module: nn.Module = nn.ParameterList([nn.Parameter(torch.zeros(1))])

    def __call__(self, batch: LossBatch) -> Tensor:
        scale = next(self.module.parameters())
        return mse(batch) * torch.exp(-scale) + scale


# ---------------------------------------------------------------- runs


class SmallTraining:
    """Builds its parts and trains them."""

    source = Numbers(6)

    def pictures(self, side: int = 16) -> Pictures:
        return Pictures(side)

    def model(self, module: nn.Module | None = None) -> Model:
        """Always the same weights."""
        torch.manual_seed(1)
        return Model(module or Halves())

    def train(
        self,
        losses: Sequence[WeightedLoss],
        settings: TrainSettings,
        folder: Path,
        evaluate: TrainEvaluation | None = None,
        *,
        model: Any = None,
        prepare: Any = None,
    ) -> TrainResult:
        return train(
            model or self.model(),
            self.source,
            prepare or self.pictures(),
            losses,
            settings,
            folder,
            evaluate,
        )

    def log(self, folder: Path) -> list[dict[str, Any]]:
        """The lines of a run's log."""
        return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]

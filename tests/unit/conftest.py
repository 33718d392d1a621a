"""What unit tests share: a training run of six drawn pictures and an autoencoder of two
convolutions; a launch of two processes; a store in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor, nn

from latentkit.contracts import Entry, Moments, Prepared, Reconstruction, Sample
from latentkit.training.loop import TrainResult, train
from latentkit.training.settings import TrainEvaluation, TrainSettings, WeightedLoss


class Six:
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), media=str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))


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


class Halves(nn.Module):
    """An autoencoder without random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, values: Tensor) -> Reconstruction:
        mean = torch.tanh(self.encoder(values))
        return Reconstruction(self.decoder(mean), mean, Moments(mean, torch.zeros_like(mean)))


class Model:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def last_layer(self) -> nn.Parameter:
        return self.module.get_parameter("decoder.weight")

    def save(self, folder: Path) -> None:
        (folder / "model.txt").write_text("")


class SmallTraining:
    """Builds its parts and trains them."""

    source = Six()

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


@pytest.fixture
def small() -> SmallTraining:
    return SmallTraining()


Launch = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def launch_two() -> Launch:
    """Runs a script, with a folder as its argument, in two processes of one launch; processes that
    take longer than `seconds` wait for each other, and are ended.
    """

    def launch(
        script: str | Path, folder: Path, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        # on CPUs, accelerate's own launcher starts one process, whatever it is told
        line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        line += [str(script), str(folder)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
        }
        pipe = subprocess.PIPE
        with subprocess.Popen(
            line, env=environment, stdout=pipe, stderr=pipe, text=True
        ) as launched:
            try:
                output, errors = launched.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                launched.terminate()  # the launcher then ends both, and its exit status says so
                output, errors = launched.communicate()
        return subprocess.CompletedProcess(line, launched.returncode, output, errors)

    return launch


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, empty."""
    store = fsspec.filesystem("memory")
    for clear in (True, False):
        store.store.clear()
        store.pseudo_dirs[:] = [""]
        if clear:
            yield store

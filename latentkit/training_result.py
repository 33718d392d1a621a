"""The result of a training run: the model's folder, with statistics of its latents measured."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentkit.checkpoint import replace_folder
from latentkit.contracts import Trainable
from latentkit.errors import TrainingError
from latentkit.store.statistics import ChannelStatistics, measure, merge
from latentkit.training_batches import Batch

MIN_LATENT_VECTORS = 10_000
MAX_PASSES = 10


@runtime_checkable
class TakesStatistics(Protocol):
    """A `Trainable` whose config holds statistics of its latents."""

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation of a draw of raw latents per channel, (C,) float64, into what `save` writes."""
        ...


def measure_latents(module: nn.Module, batches: Iterable[Batch], num_batches: int, seed: int) -> ChannelStatistics:
    """Statistics per channel of draws from the posterior, in float64: one pass over the data, or more until 10,000 vectors.

    Args:
        module: gives `Reconstruction.latents`, raw.
        batches: without end.
        num_batches: of one pass.
        seed: of the draws; torch's own generators are left as they are.
    """
    device = next(module.parameters()).device
    pieces: list[ChannelStatistics] = []
    num_vectors = 0
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for number, batch in enumerate(islice(batches, MAX_PASSES * num_batches)):
            if number >= num_batches and num_vectors >= MIN_LATENT_VECTORS:
                break
            pieces.append(measure(module(batch.inputs.to(device)).latents.float().cpu().numpy(), None))
            num_vectors += pieces[-1].count
    merged = merge(pieces)
    assert merged is not None
    return merged


def save_result(model: Trainable, statistics: ChannelStatistics | None, folder: Path) -> Path:
    """The folder `folder`/model, in which the model's own `save` wrote, whole or absent; without statistics, it keeps those it has.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    if statistics is not None and isinstance(model, TakesStatistics):
        summary = statistics.summary()
        model.set_statistics(torch.tensor(summary["mean"], dtype=torch.float64), torch.tensor(summary["std"], dtype=torch.float64))
    target, aside = folder / "model", folder / ".model.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model.save(aside)
        replace_folder(aside, target)
    except OSError as error:
        raise TrainingError(f"{target} can't be written: {error}; run again to write it from the last checkpoint") from error
    return target

"""The result of a training run: the model's folder, with statistics of its latents measured.

What a model's own config has room for is put there (`TakesStatistics`); all that was measured is in `latent_statistics.json` beside it,
whatever the model. Nothing reads that file back, and no fingerprint depends on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentkit.checkpoint import replace_folder
from latentkit.contracts import Trainable
from latentkit.errors import TrainingError
from latentkit.runtime.device import forked_random
from latentkit.store.statistics import ChannelStatistics, measure, merge
from latentkit.training_batches import Batch

MIN_LATENT_VECTORS = 10_000
MAX_PASSES = 10
STATISTICS_FILE = "latent_statistics.json"


@dataclass(frozen=True)
class LatentStatistics:
    """Of a model's raw latents per channel, in float64.

    Args:
        num_latents: how many were measured, one an input; an input seen again is counted again.
        sample: of a draw from each posterior, or of the latents themselves where there is none.
        mode: of the posteriors' means; None where there are no posteriors.
    """

    num_latents: int
    sample: ChannelStatistics
    mode: ChannelStatistics | None

    def as_json(self) -> dict[str, Any]:
        """For `latent_statistics.json`; floats survive exactly. "num_values" is per channel: latents times positions."""
        measured = {"sample": self.sample, "mode": self.mode}
        summaries = {name: piece.summary() for name, piece in measured.items() if piece is not None}
        per_channel = {name: {"mean": found["mean"], "std": found["std"]} for name, found in summaries.items()}
        return {"num_latents": self.num_latents, "num_values": self.sample.count, **per_channel}


@runtime_checkable
class TakesStatistics(Protocol):
    """A `Trainable` whose config holds statistics of its latents."""

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and standard deviation of a draw of raw latents per channel, (C,) float64, into what `save` writes."""
        ...


def measure_latents(module: nn.Module, batches: Iterable[Batch], num_batches: int, seed: int) -> LatentStatistics:
    """Statistics of the latents of one pass over the data, or more until 10,000 vectors; latents that aren't finite are left out.

    Args:
        module: gives `Reconstruction.latents`, raw, and `Reconstruction.moments`.
        batches: without end.
        num_batches: of one pass.
        seed: of the draws; torch's own generators are left as they are.

    Raises:
        TrainingError: no latent is finite.
    """
    device = next(module.parameters()).device
    samples: list[ChannelStatistics] = []
    modes: list[ChannelStatistics] = []
    num_latents = num_vectors = 0
    with forked_random(device), torch.inference_mode():
        torch.manual_seed(seed)
        for number, batch in enumerate(islice(batches, MAX_PASSES * num_batches)):
            if number >= num_batches and num_vectors >= MIN_LATENT_VECTORS:
                break
            found = module(batch.inputs.to(device))
            is_finite = found.latents.isfinite().flatten(1).all(1)
            if not is_finite.any():
                continue
            samples.append(_measure(found.latents[is_finite]))
            if found.moments is not None:
                modes.append(_measure(found.moments.mean[is_finite]))
            num_latents += int(is_finite.sum())
            num_vectors += samples[-1].count
    sample = merge(samples)
    if sample is None:
        raise TrainingError("no latent of the training data is finite, so the model is of no use; train again with a lower optimizer.lr")
    return LatentStatistics(num_latents, sample, merge(modes))


def _measure(latents: Tensor) -> ChannelStatistics:
    return measure(latents.float().cpu().numpy(), None)


def save_result(model: Trainable, statistics: LatentStatistics | None, folder: Path) -> Path:
    """The folder `folder`/model, in which the model's own `save` wrote, whole or absent; without statistics, it keeps those it has.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    if statistics is not None and isinstance(model, TakesStatistics):
        summary = statistics.sample.summary()
        model.set_statistics(torch.tensor(summary["mean"], dtype=torch.float64), torch.tensor(summary["std"], dtype=torch.float64))
    target, aside = folder / "model", folder / ".model.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model.save(aside)
        if statistics is not None:
            (aside / STATISTICS_FILE).write_text(json.dumps(statistics.as_json(), indent=1) + "\n", encoding="utf-8")
        replace_folder(aside, target)
    except OSError as error:
        raise TrainingError(f"{target} can't be written: {error}; run again to write it from the last checkpoint") from error
    return target

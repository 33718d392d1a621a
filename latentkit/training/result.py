"""The result of a training run: its models, with statistics of their latents, and result.json.

Statistics that a model's own config can store are written there (`TakesStatistics`). All measured
statistics are in `latent_statistics.json` in the model's folder, whatever the model. Nothing reads
that file back, and no fingerprint depends on it.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentkit.contracts import Source, Trainable
from latentkit.errors import TrainingError
from latentkit.runtime.device import restored_random_state
from latentkit.runtime.processes import run_on_first, share_weights
from latentkit.store.local_folder import LocalFolder
from latentkit.store.statistics import ChannelStatistics, measure, merge
from latentkit.training.batches import Batch, BatchSettings, Position, Prepare, read_batches
from latentkit.training.checkpoint import list_checkpoints, read_weights, replace_folder, step_of
from latentkit.training.shared_state import Run

MIN_LATENT_VECTORS = 10_000
MAX_PASSES = 10
STATISTICS_FILE = "latent_statistics.json"

RESULT = "result.json"
"""Contains the step and the files of each model's folder; written after them."""

MODEL, LAST = "model", "model-last"
"""Folders of the best step's model and of the last step's. Without a best only the first exists,
with the last step's model.
"""

MAX_MEASURED_SAMPLES = 10_000
"""Most samples of the training data from which statistics of latents are computed."""


@dataclass(frozen=True)
class LatentStatistics:
    """Statistics of a model's raw latents per channel, in float64.

    Args:
        num_latents: number of measured latents, one per input; an input seen twice counts twice.
        sample: statistics of one draw from each posterior, or of the latents themselves if there is
            none.
        mode: statistics of the posteriors' means; None if there are no posteriors.
    """

    num_latents: int
    sample: ChannelStatistics
    mode: ChannelStatistics | None

    def as_json(self) -> dict[str, Any]:
        """Return the content of `latent_statistics.json`. Floats are exact.

        "num_values" is per channel: latents times positions.
        """
        measured = {"sample": self.sample, "mode": self.mode}
        summaries = {name: piece.summary() for name, piece in measured.items() if piece is not None}
        per_channel = {
            name: {"mean": found["mean"], "std": found["std"]} for name, found in summaries.items()
        }
        return {"num_latents": self.num_latents, "num_values": self.sample.count, **per_channel}


@runtime_checkable
class TakesStatistics(Protocol):
    """A `Trainable` whose config stores statistics of its latents."""

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and standard deviation of draws of raw latents per channel, (C,) float64, for
        what `save` writes.
        """
        ...


def measure_latents(
    module: nn.Module, batches: Iterable[Batch], num_batches: int, seed: int
) -> LatentStatistics:
    """Return statistics of the latents of one pass over the data, or of several until there are
    10,000 vectors. Latents that aren't finite are left out.

    Args:
        module: returns `Reconstruction.latents`, raw, and `Reconstruction.moments`.
        batches: endless.
        seed: seed of the draws; torch's own generators are unchanged.

    Raises:
        TrainingError: no latent is finite.
    """
    device = next(module.parameters()).device
    samples: list[ChannelStatistics] = []
    modes: list[ChannelStatistics] = []
    num_latents = num_vectors = 0
    with restored_random_state(device), torch.inference_mode():
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
        raise TrainingError(
            "no latent of the training data is finite, so the model is unusable. Train again with"
            " a lower optimizer.lr"
        )
    return LatentStatistics(num_latents, sample, merge(modes))


def _measure(latents: Tensor) -> ChannelStatistics:
    return measure(latents.float().cpu().numpy(), None)


def save_result(model: Trainable, statistics: LatentStatistics | None, target: Path) -> None:
    """Write the folder `target` with the model's own `save`, completely or not at all.

    Without statistics, the model keeps those it has.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    if statistics is not None and isinstance(model, TakesStatistics):
        summary = statistics.sample.summary()
        model.set_statistics(
            torch.tensor(summary["mean"], dtype=torch.float64),
            torch.tensor(summary["std"], dtype=torch.float64),
        )
    aside = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        model.save(aside)
        if statistics is not None:
            (aside / STATISTICS_FILE).write_text(
                json.dumps(statistics.as_json(), indent=1) + "\n", encoding="utf-8"
            )
        replace_folder(aside, target)
    except OSError as error:
        raise TrainingError(
            f"{target} can't be written: {error}; run again to write it from the last checkpoint"
        ) from error


# ---------------------------------------------------------------- the end of a run


def finish(
    run: Run,
    model: Trainable,
    source: Source,
    prepare: Prepare,
    folder: Path,
    left_out: Mapping[str, str],
) -> None:
    """Write the models, with averaged weights if there are any. The module then has the weights of
    model/.

    Every process must call it.

    Raises:
        TrainingError: a folder can't be written, or no latent is finite.
    """
    state, module = run.state, run.state.module
    if state.average is not None:
        module.load_state_dict(state.average.tensors)
    module.eval()
    steps = {MODEL: state.step}
    if state.best is not None:
        steps = {MODEL: state.best.step, LAST: state.step}
    last_weights = (
        {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}
        if state.best
        else {}
    )
    best = _load_best(run, folder / "checkpoints") if state.best else last_weights

    def write() -> None:
        """Save each model with its statistics, the best first: its weights are loaded already."""
        for name, step in steps.items():
            if name == LAST:
                module.load_state_dict(last_weights)
            save_result(model, _measure_step(run, source, prepare, step), folder / name)
        if LAST not in steps:
            shutil.rmtree(folder / LAST, ignore_errors=True)  # from an earlier, shorter run
        _write_result(run, folder, steps, left_out)

    run_on_first(write)  # the others wait
    if best:
        module.load_state_dict(best)


def _load_best(run: Run, checkpoints: Path) -> dict[str, Tensor]:
    """Load the best step's weights into the module of every process, and return them on the CPU."""
    best, module = run.state.best, run.state.module
    assert best is not None

    def load() -> None:
        paths = [path for path in list_checkpoints(checkpoints) if step_of(path) == best.step]
        if not paths:
            gone = f"the checkpoint of the best step, {best.step}, is missing in {checkpoints}"
            raise TrainingError(f"{gone}. Put it back, or set evaluate.best to another metric")
        module.load_state_dict(read_weights(paths[0]))

    if best.step != run.state.step:
        run_on_first(load)
        share_weights(module)
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def _measure_step(run: Run, source: Source, prepare: Prepare, step: int) -> LatentStatistics | None:
    """Return statistics of the latents of the training data; None if the encoder is unchanged."""
    if run.settings.train == "decoder" or step == 0:
        return None
    shares = BatchSettings(run.settings.batch_size, run.settings.seed, max_bad=run.settings.max_bad)
    num_batches = math.ceil(min(len(source), MAX_MEASURED_SAMPLES) / shares.batch_size)
    with contextlib.closing(read_batches(source, prepare, shares, Position())) as batches:
        return measure_latents(run.state.module, batches, num_batches, run.settings.seed)


def _write_result(
    run: Run, folder: Path, steps: Mapping[str, int], left_out: Mapping[str, str]
) -> None:
    """Write result.json with each model's step, metrics and files. Warn if training only made the
    model worse.
    """
    measured = run.log.read_metrics()
    models = {
        name: {"step": step, "metrics": measured.get(step), "files": _sizes(folder / name)}
        for name, step in steps.items()
    }
    result = {
        "step": run.state.step,
        "models": models,
        "before": measured.get(0),
        "left_out": left_out,
    }
    LocalFolder(folder).replace(RESULT, json.dumps(result, indent=1).encode())
    best = run.state.best
    if best is not None and best.step == 0:
        run.log.note(
            f"by {best.metric}, no step was better than the model before training, so {MODEL}/"
            " contains that model"
        )


def finished_steps(folder: Path) -> int:
    """Return the steps of the run's models, or 0 if files are missing.

    While a run continues, older models stay.
    """
    try:
        written = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        models = written.get(
            "models", {MODEL: written}
        )  # older versions wrote one model, without its name
        are_whole = all(
            found["files"].items() <= _sizes(folder / name).items()
            for name, found in models.items()
        )
        return int(written["step"]) if are_whole else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _sizes(model: Path) -> dict[str, int]:
    """Return the bytes of every file, by its path in the folder."""
    return {
        path.relative_to(model).as_posix(): path.stat().st_size
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }

"""The training loop: built objects in, the folder of a trained model out.

Read `train` first, then `training_step.take_step`. Weights stay float32; the forward pass runs under autocast, losses outside it in
float32. A run that was killed goes on from its newest checkpoint and ends, on a CPU, with the same weights bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast

from latentkit.checkpoint import Checkpoint, list_checkpoints, read_newest, step_of, write_checkpoint
from latentkit.contracts import Modality, Source, Trainable
from latentkit.errors import LatentkitError, TrainingError
from latentkit.numerics import many_graphs
from latentkit.runtime.processes import run_on_first
from latentkit.store.folder import LocalFolder
from latentkit.training_batches import BadSamples, Batch, BatchSettings, FreshViews, Order, Position, Prepare, read_batches
from latentkit.training_log import TrainingLog
from latentkit.training_result import measure_latents, save_result
from latentkit.training_run import Run
from latentkit.training_settings import OptimizerSettings, TrainEvaluation, TrainSettings, WeightedLoss, WeightSchedule
from latentkit.training_start import check, open_accelerator, rehearse, start
from latentkit.training_state import Best, TrainState, batches_of, pack, read_together, restore
from latentkit.training_step import take_step

__all__ = ["OptimizerSettings", "TrainEvaluation", "TrainResult", "TrainSettings", "WeightSchedule", "WeightedLoss", "train"]

RESULT = "result.json"
"""Says which step's weights are in model/, and which files; written after them."""

MAX_MEASURED_SAMPLES = 10_000
"""Of the training data, that the statistics of latents come from."""


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Args:
        model: folder of the model.
        steps: optimiser steps done in all.
        num_bad_samples: samples that this process could not use.
        num_skipped_steps: steps not taken because loss or gradient were not finite.
        finished_before: the run was done already, and nothing was computed.
    """

    model: Path
    steps: int
    num_bad_samples: int = 0
    num_skipped_steps: int = 0
    finished_before: bool = False


def train(
    model: Trainable,
    source: Source,
    prepare: Modality | Sequence[Modality] | Prepare,
    losses: Sequence[WeightedLoss],
    settings: TrainSettings,
    folder: Path,
    evaluate: TrainEvaluation | None = None,
) -> TrainResult:
    """Train `model` on `source`; again with the same folder goes on from the newest whole checkpoint, or does nothing when all is done.

    Args:
        model: its weights are changed in place; at the end they are the result's.
        source: read by position, in an order drawn anew each epoch.
        prepare: a modality, which gives one view of each sample, all of one shape; several, of which each batch draws one; or a `Prepare`.
        losses: their weighted sum is what training makes small.
        settings: every number.
        folder: gets model/, checkpoints/, log.jsonl and result.json, which says what step model/ is of, and which samples the first
            process left out since it last began, and why. The model has the averaged weights where there are any, and measured statistics.
        evaluate: measures the model now and then.

    Raises:
        TrainingError: it can't start or go on; says from where it can be resumed.
        SourceError: media out of reach, or too few usable samples.
    """
    check(source, losses, settings, evaluate)
    accelerator = open_accelerator(settings, folder)
    log = TrainingLog(folder / "log.jsonl", settings.steps, accelerator, losses)
    newest = read_together(lambda: _find_newest(folder, log))
    finished = run_on_first(lambda: finished_steps(folder))
    if newest is not None and newest.step >= settings.steps and finished == newest.step:
        return TrainResult(folder / "model", newest.step, finished_before=True)
    views = _views(prepare, settings.seed)
    bad, shares = BadSamples(), batches_of(settings, accelerator)
    order = Order(len(source), shares)  # too few samples are refused before the model is touched
    run = start(model, losses, settings, accelerator, log)
    for text in restore(run.state, newest, settings, len(source), accelerator) if newest else []:
        log.note(text)
    log.begin(run.state.step, vars(settings))
    with contextlib.closing(log), _explain_memory(run.state), many_graphs(settings.compile):
        with contextlib.closing(read_batches(source, views, shares, run.state.position, bad)) as batches:
            _train_steps(run, rehearse(run, batches), folder / "checkpoints", order, evaluate)
        left_out = {source[index].key: reason for index, reason in sorted(bad.reasons.items())}
        _finish(run, model, source, views, folder, left_out)
    return TrainResult(folder / "model", run.state.step, len(bad.reasons), run.state.num_skipped_steps)


def _find_newest(folder: Path, log: TrainingLog) -> Checkpoint | None:
    """The checkpoint to go on from; None for a new run.

    Raises:
        TrainingError: the folder has a model, but nothing that says it came from such a run.
    """
    newest = read_newest(folder / "checkpoints", log.note)
    if newest is None and (folder / "model").exists():
        raise TrainingError(f"{folder / 'model'} is there, but no checkpoint that it came from; give another output.path, or move it away")
    return newest


def finished_steps(folder: Path) -> int:
    """The step that the run's model is of, 0 where it isn't there with all its files: while a run goes on, an older one stays in place."""
    try:
        written = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return int(written["step"]) if written["files"].items() <= _sizes(folder / "model").items() else 0
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def _sizes(model: Path) -> dict[str, int]:
    """Bytes of every file, by its path within the folder."""
    return {path.relative_to(model).as_posix(): path.stat().st_size for path in sorted(model.rglob("*")) if path.is_file()}


def _views(prepare: Modality | Sequence[Modality] | Prepare, seed: int) -> Prepare:
    modalities = [prepare] if isinstance(prepare, Modality) else prepare
    return FreshViews(modalities, seed) if isinstance(modalities, Sequence) else modalities


# ---------------------------------------------------------------- steps


def _train_steps(run: Run, batches: Iterator[Batch], checkpoints: Path, order: Order, evaluate: TrainEvaluation | None) -> None:
    """All steps that are left, with evaluations and checkpoints."""
    state, settings = run.state, run.settings
    skipped_in_row = 0
    while state.step < settings.steps:
        values, skipped = take_step(run, batches)
        skipped_in_row = skipped_in_row + 1 if skipped else 0
        if skipped_in_row == settings.max_bad_steps:
            raise TrainingError(_diverged(state.step, skipped, settings.max_bad_steps, checkpoints))
        if values is None:
            continue
        at_end = state.step == settings.steps
        run.log.add(values)
        if at_end or state.step % settings.log_every == 0:
            run.log.write(state.step, order.place(max(state.position.number - 1, 0)).epoch, state.num_skipped_steps)
        is_best, failure = False, None
        if evaluate is not None and (at_end or state.step % evaluate.every == 0):
            try:
                is_best = _evaluate(run, evaluate)
            except LatentkitError as error:
                failure = error
        if at_end or is_best or failure or state.step % settings.checkpoint_every == 0:
            packed = pack(state, settings, order.num_samples, run.accelerator)
            if run.accelerator.is_main_process:
                write_checkpoint(checkpoints, packed, settings.keep, state.best.step if state.best else None)
            run.accelerator.wait_for_everyone()
        if failure:
            raise failure


def _evaluate(run: Run, evaluate: TrainEvaluation) -> bool:
    """Whether the model, with its averaged weights where there are any, is better than ever by the metric that counts.

    Raises:
        LatentkitError: it can't be measured, in any process; or that metric isn't among those measured.
    """
    state, device = run.state, run.accelerator.device
    metrics: Mapping[str, float] = {}
    failure: LatentkitError | None = None
    state.module.eval()
    with contextlib.ExitStack() as stack:
        stack.callback(state.module.train)
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(torch.no_grad())
        if state.average is not None:
            stack.enter_context(state.average.swapped_in(state.module))
        try:
            metrics = evaluate.measure(state.module, state.step)
        except LatentkitError as error:
            failure = error
    _raise_together(failure, device)
    run.log.write_metrics(state.step, metrics)
    if evaluate.best is None:
        return False
    if evaluate.best not in metrics and run.accelerator.is_main_process:
        failure = TrainingError(f"evaluate.best: {evaluate.best!r} isn't measured, which are {', '.join(metrics) or 'none'}")
    _raise_together(failure, device)
    value = torch.tensor(metrics.get(evaluate.best, math.nan), dtype=torch.float64, device=device)
    found = float(broadcast(value))  # of the first process, so that all agree
    sign = 1 if evaluate.higher_is_better else -1
    is_best = math.isfinite(found) and (state.best is None or sign * found > sign * state.best.value)
    if is_best:
        state.best = Best(state.step, found)
    return is_best


def _raise_together(failure: LatentkitError | None, device: torch.device) -> None:
    """Raise the first process's failure, in all: the others would wait for it at the next checkpoint."""
    if float(broadcast(torch.tensor(float(failure is not None), device=device))):
        raise failure or TrainingError("the first process could not measure the model; it says why")


@contextlib.contextmanager
def _explain_memory(state: TrainState) -> Iterator[None]:
    """Say what to turn down when memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory after step {state.step}: {str(error).splitlines()[0] if str(error) else type(error).__name__}. "
            "Lower batch_size and raise accumulate by as much, which trains the same; or set gradient_checkpointing: true; or prepare "
            "smaller samples (modality.with.size)"
        ) from error


def _diverged(step: int, skipped: Sequence[str], count: int, checkpoints: Path) -> str:
    kept = list_checkpoints(checkpoints)
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    if kept and step_of(kept[-1]) == step:  # no step was finite since
        good = f"nothing was finite since the checkpoint {kept[-1]}"
        good += f"; the last good one may be {kept[-2]}: move the newer away to go on from there" if kept[1:] else ""
    return (
        f"loss or gradient of {' and '.join(skipped)} were not finite {count} times running after step {step}; {good}. "
        "Lower optimizer.lr, set optimizer.clip or precision: float32, then run again"
    )


# ---------------------------------------------------------------- after the last step


def _finish(run: Run, model: Trainable, source: Source, prepare: Prepare, folder: Path, left_out: Mapping[str, str]) -> None:
    """Write the model, with the averaged weights where there are any, its latents measured on the training data."""
    module = run.state.module
    if run.state.average is not None:
        module.load_state_dict(run.state.average.tensors)
    module.eval()
    if run.accelerator.is_main_process:
        statistics = None
        if run.settings.train != "decoder":  # else the encoder is as it was, and so are its latents' statistics
            shares = BatchSettings(run.settings.batch_size, run.settings.seed, max_bad=run.settings.max_bad)
            num_batches = math.ceil(min(len(source), MAX_MEASURED_SAMPLES) / shares.batch_size)
            with contextlib.closing(read_batches(source, prepare, shares, Position())) as batches:
                statistics = measure_latents(module, batches, num_batches, run.settings.seed)
        save_result(model, statistics, folder)
        result = {"step": run.state.step, "files": _sizes(folder / "model"), "left_out": left_out}
        LocalFolder(folder).replace(RESULT, json.dumps(result, indent=1).encode())
    run.accelerator.wait_for_everyone()

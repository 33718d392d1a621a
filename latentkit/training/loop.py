"""The training loop: trains built objects and writes the folder of a trained model.

Read `train` first, then `training_step.take_step`. Weights stay float32; the forward pass runs
under autocast, losses outside it in float32. A run that was killed continues from its newest
checkpoint and ends, on a CPU, with the same weights bit for bit.

    model/, model-last/   the best step's weights where evaluations say which is the best, and the
                          last step's; else model/ alone, of the last step; averaged weights where
                          there are any, with measured statistics
    checkpoints/          see `checkpoint`
    log.jsonl             averages of steps, and metrics; step 0 is before training
    result.json           steps, metrics and files of each model; samples that the first process
                          left out since it last began, and why

An error and a signal (SIGTERM, Ctrl-C) end a run with a checkpoint of its newest whole step. An
error in one of several processes loses the steps since the newest checkpoint: each has random
numbers and a place in the data of its own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from latentkit.contracts import Modality, Source, Trainable
from latentkit.errors import TrainingError
from latentkit.runtime.device import is_out_of_memory, restored_random_state
from latentkit.runtime.numerics import allow_many_graphs
from latentkit.runtime.processes import run_on_first
from latentkit.training.batches import Batch, FreshViews, Order, Prepare, read_batches
from latentkit.training.checkpoint import Checkpoint, list_checkpoints, read_newest, step_of
from latentkit.training.checkpoint_contents import (
    Best,
    TrainState,
    batches_of,
    read_together,
    remember_position,
    restore,
)
from latentkit.training.log import TrainingLog
from latentkit.training.result import finish, finished_steps
from latentkit.training.settings import TrainEvaluation, TrainSettings, WeightedLoss
from latentkit.training.shared_state import Run, Saver
from latentkit.training.start import check, check_losses_on_first_batch, open_accelerator, start
from latentkit.training.step import copy_buffers, restore_buffers, take_step


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    Args:
        steps: completed optimizer steps in total.
        num_bad_samples: samples that this process couldn't use.
        num_skipped_steps: steps skipped because loss or gradient weren't finite.
        finished_before: whether the run was already finished, so that nothing was computed.
        best: the evaluation of the returned model; None: the model is that of the last step.
    """

    model: Path
    steps: int
    num_bad_samples: int = 0
    num_skipped_steps: int = 0
    finished_before: bool = False
    best: Best | None = None


def train(
    model: Trainable,
    source: Source,
    prepare: Modality | Sequence[Modality] | Prepare,
    losses: Sequence[WeightedLoss],
    settings: TrainSettings,
    folder: Path,
    evaluate: TrainEvaluation | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train `model` on `source`. Calling it again with the same folder continues from the newest
    undamaged checkpoint, or does nothing if the run is finished.

    Args:
        model: its weights are changed in place; at the end they are the result's.
        source: read by position, in a new order each epoch.
        prepare: a modality, which returns one view of each sample, all of one shape; several, of
            which each batch uses one; or a `Prepare`.
        losses, settings: the losses, whose weighted sum is minimized, and all numbers.
        folder: output folder; its content is listed in this module's docstring.
        evaluate: measures the model before the first step and at intervals.
        device: device, as for `choose_device`.

    Raises:
        TrainingError: the run can't start or continue; the message says where it can be resumed.
        SourceError: media can't be reached, or there are too few usable samples.
    """
    check(source, losses, settings, evaluate)
    accelerator, settings = open_accelerator(settings, folder, device)
    log = TrainingLog(folder / "log.jsonl", settings.steps, accelerator, losses)
    newest = read_together(lambda: _find_newest(folder, log))
    finished = run_on_first(lambda: finished_steps(folder))
    if newest is not None and newest.step >= settings.steps and finished == newest.step:
        return _finished(newest, folder / "model")
    views = _views(prepare, settings.seed)
    bad, shares = dict[str, str](), batches_of(settings, accelerator)
    order = Order(len(source), shares)  # too few samples are refused before the model is touched
    run = start(model, losses, settings, accelerator, log)
    saver = _begin(run, newest, folder / "checkpoints", len(source), evaluate)
    with (
        contextlib.closing(log),
        run.stop.watching(),
        _explain_memory(run.state),
        allow_many_graphs(settings.compile),
    ):
        with contextlib.closing(
            read_batches(source, views, shares, run.state.position, bad)
        ) as batches:
            _train_steps(run, check_losses_on_first_batch(run, batches), saver, order, evaluate)
        finish(run, model, source, views, folder, dict(sorted(bad.items())))
    path, state = folder / "model", run.state
    return TrainResult(path, state.step, len(bad), state.num_skipped_steps, best=state.best)


def _find_newest(folder: Path, log: TrainingLog) -> Checkpoint | None:
    """Return the checkpoint to continue from; None for a new run."""
    newest = read_newest(folder / "checkpoints", log.note)
    if newest is None and (folder / "model").exists():
        raise TrainingError(
            f"{folder / 'model'} exists, but not the checkpoint that it came from. Choose another"
            " output.path, or move it away"
        )
    return newest


def _finished(last: Checkpoint, model: Path) -> TrainResult:
    best = last.state["best"]
    found = Best(**best) if best else None
    return TrainResult(model, last.step, finished_before=True, best=found)


def _begin(
    run: Run,
    newest: Checkpoint | None,
    folder: Path,
    num_samples: int,
    evaluate: TrainEvaluation | None,
) -> Saver:
    """Restore the newest checkpoint's state, if there is one, and continue the log."""
    state, log = run.state, run.log
    for text in (
        restore(state, newest, run.settings, num_samples, run.accelerator) if newest else []
    ):
        log.note(text)
    wanted = evaluate.best if evaluate else None
    if state.best is not None and (wanted is None or state.best.metric not in ("", wanted)):
        then = "the best is determined from here on" if wanted else "the model is of the last step"
        log.note(f"evaluate.best was {state.best.metric!r} and is {wanted!r}: {then}")
        state.best = None
    kept = run_on_first(lambda: [step_of(path) for path in list_checkpoints(folder)])
    if state.best is not None and state.best.step not in kept:
        log.note(
            f"the checkpoint of the best step, {state.best.step}, is gone: the best is looked for"
            " from here on"
        )
        state.best = None
    log.begin(
        state.step,
        vars(run.settings),
        state.evaluated,
        newest.state.get("unlogged") if newest else None,
    )
    return Saver(run, folder, num_samples, newest.step if newest else None)


def _views(prepare: Modality | Sequence[Modality] | Prepare, seed: int) -> Prepare:
    modalities = [prepare] if isinstance(prepare, Modality) else prepare
    return FreshViews(modalities, seed) if isinstance(modalities, Sequence) else modalities


# ---------------------------------------------------------------- steps


def _train_steps(
    run: Run, batches: Iterator[Batch], saver: Saver, order: Order, evaluate: TrainEvaluation | None
) -> None:
    """Run all remaining steps. A step's checkpoint is written before its evaluation."""
    state, settings = run.state, run.settings
    if evaluate is not None and (state.evaluated is None or _is_due(run, evaluate)):
        _evaluate(run, evaluate, saver)
    skipped_in_row = 0
    while state.step < settings.steps:
        with run.stop.holding():
            with saver.saving_on_failure():
                with _undo_on_failure(run):
                    values, skipped = take_step(run, batches)
                _log(run, values, order)
            skipped_in_row = skipped_in_row + 1 if skipped else 0
            if skipped_in_row == settings.max_bad_steps:
                raise TrainingError(
                    _explain_divergence(state.step, skipped, settings.max_bad_steps, saver.folder)
                )
            is_due = evaluate is not None and "the model" not in skipped and _is_due(run, evaluate)
            is_saved = state.step == settings.steps or state.step % settings.checkpoint_every == 0
            if run.stop.is_agreed or is_due or (is_saved and "the model" not in skipped):
                saver.save()
        if run.stop.is_agreed:
            run.stop.end()
        if evaluate is not None and is_due:
            _evaluate(run, evaluate, saver)


def _log(run: Run, values: dict[str, float] | None, order: Order) -> None:
    """Log a step; None: the model's step was skipped."""
    state, settings = run.state, run.settings
    if values is None:
        return
    run.log.add(values)
    if state.step == settings.steps or state.step % settings.log_every == 0:
        epoch = order.place(max(state.position.number - 1, 0)).epoch
        run.log.write(state.step, epoch, state.num_skipped_steps)


@contextlib.contextmanager
def _undo_on_failure(run: Run) -> Iterator[None]:
    """Undo a step that fails before any weight has changed, so that the state before it can be
    saved.
    """
    state = run.state
    go_back = remember_position(state, run.accelerator)
    buffers = copy_buffers(
        [
            state.module,
            *state.loss_modules.values(),
            *(found.module for found in state.discriminators.values()),
        ]
    )
    try:
        yield
    except BaseException:
        if state.is_whole:
            go_back()
            restore_buffers(buffers)
        raise


# ---------------------------------------------------------------- evaluations


def _is_due(run: Run, evaluate: TrainEvaluation) -> bool:
    """Return whether the model must be evaluated after this step."""
    step = run.state.step
    return step != run.state.evaluated and (
        step == run.settings.steps or step % evaluate.every == 0
    )


def _evaluate(run: Run, evaluate: TrainEvaluation, saver: Saver) -> None:
    """Measure the model, with averaged weights if there are any, and record the best."""
    state = run.state
    metrics = run_on_first(lambda: _measure(run, evaluate))
    state.evaluated = state.step
    if evaluate.best is not None:
        value = metrics[evaluate.best]
        sign = 1 if evaluate.higher_is_better else -1
        if math.isfinite(value) and (state.best is None or sign * value > sign * state.best.value):
            state.best = Best(state.step, value, evaluate.best)
    run.log.write_metrics(state.step, metrics)
    saver.save_evaluation()


def _measure(run: Run, evaluate: TrainEvaluation) -> Mapping[str, float]:
    """Return the metrics of the current model, in eval mode, without changing the run."""
    state, best = run.state, evaluate.best
    state.module.eval()
    with contextlib.ExitStack() as stack:
        stack.callback(state.module.train)
        stack.enter_context(restored_random_state(run.accelerator.device))
        stack.enter_context(torch.no_grad())
        if state.average is not None:
            stack.enter_context(state.average.swapped_in(state.module))
        metrics = evaluate.measure(state.module, state.step)
    if best is not None and best not in metrics:
        raise TrainingError(
            f"evaluate.best: {best!r} isn't measured, which are {', '.join(metrics) or 'none'}"
        )
    return metrics


@contextlib.contextmanager
def _explain_memory(state: TrainState) -> Iterator[None]:
    """Explain what to reduce when memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory after step {state.step}:"
            f" {str(error).splitlines()[0] if str(error) else type(error).__name__}. Lower"
            " batch_size and raise accumulate by the same factor, which gives the same training;"
            " or set gradient_checkpointing: true; or prepare smaller samples (modality.with.size)"
        ) from error


def _explain_divergence(step: int, skipped: Sequence[str], count: int, checkpoints: Path) -> str:
    """Return a message on a run whose losses or gradients stopped being finite."""
    kept = list_checkpoints(checkpoints)
    good = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
    if kept and step_of(kept[-1]) == step:  # no step has been finite since
        good = f"nothing was finite since the checkpoint {kept[-1]}"
        good += (
            f"; the last good one may be {kept[-2]}: move the newer one away to continue from there"
            if kept[1:]
            else ""
        )
    return (
        f"loss or gradient of {' and '.join(skipped)} were not finite {count} times in a row after"
        f" step {step}; {good}. Lower optimizer.lr, set optimizer.clip or precision: float32, then"
        " run again"
    )

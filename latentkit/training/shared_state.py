"""Shared by all parts of a training run: the model's passes, the run's state, and its checkpoints.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latentkit.contracts import Moments, Reconstruction
from latentkit.errors import TrainingError
from latentkit.runtime.stopping import Stop
from latentkit.training.checkpoint import amend_checkpoint, write_checkpoint
from latentkit.training.checkpoint_contents import TrainState, pack, pack_evaluation
from latentkit.training.log import TrainingLog
from latentkit.training.settings import TrainSettings, WeightedLoss

AUTOCAST = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """Shared by the parts of a run: its state, which changes, and everything that doesn't.

    Args:
        last_layers: by role of a loss, the weight at which adaptive weights are computed.
    """

    state: TrainState
    losses: Sequence[WeightedLoss]
    last_layers: dict[str, nn.Parameter]
    settings: TrainSettings
    accelerator: Accelerator
    log: TrainingLog
    stop: Stop = field(default_factory=Stop)

    def forward(self, values: Tensor) -> Reconstruction:
        """Return the model's output, computed in the run's precision and returned in float32."""
        with self.autocast():
            found: Reconstruction = self.state.module(values)
        return in_float32(found)

    def decode_moments(self, moments: Moments) -> Reconstruction:
        """Return the same as `forward` from a precomputed posterior: only the decoder runs."""
        latents = moments.mean + torch.exp(0.5 * moments.logvar) * torch.randn_like(moments.mean)
        return Reconstruction(self.decode(latents), latents, moments)

    def encode(self, values: Tensor) -> Moments | Tensor:
        """Return moments of a batch, or latents if the model has none, in float32."""
        found = self.forward(values)
        return found.latents if found.moments is None else found.moments

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents to a float32 batch.

        Raises:
            TrainingError: the model has no separate decoder.
        """
        decode = getattr(self.state.module, "decode", None)
        if decode is None:
            raise TrainingError(
                "this run decodes latents, but the model's module has no method decode"
            )
        with self.autocast():
            decoded: Tensor = decode(latents)
        return decoded.float()

    def active_losses(self) -> list[WeightedLoss]:
        """Return the losses that are active in the next step."""
        return [loss for loss in self.losses if loss.schedule.is_active(self.state.step)]

    def autocast(self) -> torch.autocast:
        """Return the context in which the model computes in the run's precision."""
        dtype = AUTOCAST[self.settings.precision]
        return torch.autocast(self.accelerator.device.type, dtype=dtype, enabled=dtype is not None)


def in_float32(found: Reconstruction) -> Reconstruction:
    """Return a model's output in float32."""
    moments = found.moments
    return Reconstruction(
        output=found.output.float(),
        latents=found.latents.float(),
        moments=None if moments is None else Moments(moments.mean.float(), moments.logvar.float()),
        extra_losses={name: value.float() for name, value in found.extra_losses.items()},
    )


# ---------------------------------------------------------------- checkpoints


@dataclass
class Saver:
    """Writes the checkpoints of a run. Every process must call it, at the same steps.

    Args:
        saved: step of the newest checkpoint; None if there is none.
    """

    run: Run
    folder: Path
    num_samples: int
    saved: int | None

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: the disk is full, or the folder can't be written.
        """
        run, state = self.run, self.run.state
        packed = pack(state, run.settings, self.num_samples, run.accelerator)
        packed = replace(packed, state={**packed.state, "unlogged": run.log.sums})
        best = state.best.step if state.best else None
        self._write(lambda: write_checkpoint(self.folder, packed, run.settings.keep, best))
        self.saved = state.step

    def save_evaluation(self) -> None:
        """Write the result of an evaluation into the checkpoint of its step.

        Raises:
            TrainingError: the disk is full, or the folder can't be written.
        """
        state = self.run.state
        best = state.best.step if state.best else None
        changes = pack_evaluation(state)
        if self.saved == state.step:
            self._write(
                lambda: amend_checkpoint(
                    self.folder, state.step, changes, self.run.settings.keep, best
                )
            )
        elif best is not None:  # before the first step, which may stay the best
            self.save()

    def _write(self, write: Callable[[], object]) -> None:
        """Let the first process write. All processes then know whether it could, and whether to
        stop.
        """
        run = self.run
        failure: Exception | None = None
        if run.accelerator.is_main_process:
            try:
                write()
            except Exception as error:  # noqa: BLE001  raised below, when the others know
                failure = error
        flags = torch.tensor(
            [float(failure is not None), float(run.stop.number)], device=run.accelerator.device
        )
        failed, stopped = run.accelerator.reduce(flags, "sum").tolist()
        run.stop.is_agreed = stopped > 0
        if failed:
            raise failure or TrainingError(
                "the first process could not write a checkpoint; its message says why"
            )

    @contextlib.contextmanager
    def saving_on_failure(self) -> Iterator[None]:
        """Save the newest complete step when an error ends the run, and re-raise the error."""
        try:
            yield
        except BaseException:
            if not self.run.stop.is_urgent and self.run.state.step > (self.saved or 0):
                self._try_to_save()
            raise

    def _try_to_save(self) -> None:
        """Save the newest complete step if possible, and print what was saved or lost."""
        last = f"step {self.saved}" if self.saved else "the start"
        if self.run.accelerator.num_processes > 1 or not self.run.state.is_whole:
            why = (
                "some weights are of the next step"
                if not self.run.state.is_whole
                else "a checkpoint needs all processes"
            )
            self.run.log.note(f"the steps since {last} are lost: {why}")
            return
        try:
            self.save()
        except Exception as error:  # noqa: BLE001  the first error is the one to report
            self.run.log.note(f"the steps since {last} are lost: {error}")
        else:
            self.run.log.note(
                f"step {self.run.state.step} is saved; the run can continue from there"
            )

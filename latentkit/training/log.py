"""Reports of a training run: log.jsonl, trackers, the progress line, and the meaning of its KL
weight.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentkit.errors import TrainingError
from latentkit.losses.kl_weight import describe_kl
from latentkit.runtime.nested import flatten
from latentkit.runtime.progress import Progress
from latentkit.training.settings import WeightedLoss


class TrainingLog:
    """Averages the values of steps, appends them to log.jsonl, passes them to trackers, and prints
    progress to stderr; only in the first process.

    Args:
        accelerator: knows which process this is, and has the trackers.
    """

    def __init__(
        self, path: Path, num_steps: int, accelerator: Accelerator, losses: Sequence[WeightedLoss]
    ) -> None:
        self._path, self._num_steps, self._accelerator, self._losses = (
            path,
            num_steps,
            accelerator,
            losses,
        )
        self._progress: Progress | None = None
        self._described = False
        self._clear()

    def begin(
        self,
        step: int,
        settings: Mapping[str, Any],
        evaluated: int | None = None,
        sums: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        """Start trackers and clock after `step` completed steps, and drop lines of later steps.

        Args:
            evaluated: step of the newest evaluation; lines of later ones are dropped too.
            sums: value of the property when the run stopped.
        """
        if self._accelerator.log_with:
            texts = {name: str(value) for name, value in settings.items()}
            self._accelerator.init_trackers(
                self._path.parent.name, texts, {"tensorboard": {"purge_step": step + 1}}
            )
        self._progress = Progress(
            self._num_steps, "steps", self._accelerator.is_main_process, before=step
        )
        self._num_samples = 0.0
        self._clear()
        self._sums |= {name: (total, count) for name, (total, count) in (sums or {}).items()}
        if self._accelerator.is_main_process:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later(self._path, step, -1 if evaluated is None else evaluated)

    @property
    def sums(self) -> dict[str, tuple[float, int]]:
        """Return sum and count of every value since the last line, except those for the rate."""
        return {name: found for name, found in self._sums.items() if name != "num_samples"}

    def note(self, text: str) -> None:
        """Print a line."""
        if self._progress is not None:
            self._progress.note(text)
        elif self._accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of a step.

        Args:
            values: averages over the step: "loss", "losses.NAME" (unweighted) with "weighted.NAME",
                "kl_nats" per sample, "num_values" per sample and "num_latent_values" of its
                posterior, and anything else for the log; "num_samples" counts the step's samples.
        """
        for name, value in values.items():
            if math.isfinite(value):  # a loss with weight 0 may have any value
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + value, count + 1
        if not self._described:
            self._described = True
            fixed = [
                (loss.name, loss.loss, loss.weight) for loss in self._losses if not loss.adaptive
            ]
            for line in describe_kl(
                fixed, round(values["num_values"]), round(values.get("num_latent_values", 0))
            ):
                self.note(line)
        self._show(values)

    def write(self, step: int, epoch: int, num_skipped_steps: int) -> None:
        """Append the averages since the last line. Those of the last step are also printed.

        Raises:
            TrainingError: the file can't be written.
        """
        record = {
            "step": step,
            "epoch": epoch,
            "num_skipped_steps": num_skipped_steps,
            **self._averages(),
        }
        self._append(record)
        self._clear()
        if step == self._num_steps:
            self.note(f"step {step}/{self._num_steps}  loss {record['loss']:.5f}")

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append an evaluation, {"step", "metrics"}, and print it. A metric that isn't finite
        becomes null.

        Raises:
            TrainingError: the file can't be written.
        """
        self._append(
            {
                "step": step,
                "metrics": {
                    name: value if math.isfinite(value) else None for name, value in metrics.items()
                },
            }
        )
        when = f"step {step}/{self._num_steps}" if step else "before the first step"
        self.note(f"{when}  " + "  ".join(f"{name} {value:.5g}" for name, value in metrics.items()))

    def read_metrics(self) -> dict[int, dict[str, float | None]]:
        """Return the metrics of every evaluation, by step."""
        if not self._path.exists():  # the log of a finished run may have been removed
            return {}
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        return {line["step"]: line["metrics"] for line in lines if "metrics" in line}

    def close(self) -> None:
        """End trackers and progress line."""
        if self._progress is not None:
            self._progress.close()
            self._progress = None
        if self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def _append(self, record: Mapping[str, Any]) -> None:
        """Append a record to log.jsonl, in the first process, and pass its numbers to the trackers.
        """
        if not self._accelerator.is_main_process:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self._path} can't be written: {error.strerror}; the run continues from its last"
                " checkpoint"
            ) from error
        numbers = {name: value for name, value in flatten(record) if value is not None}
        self._accelerator.log(numbers, step=numbers.pop("step"))

    def _clear(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._cleared = time.monotonic()

    def _averages(self) -> dict[str, Any]:
        """Return means over the steps in which a value existed, because a loss isn't active in
        every step.
        """
        seconds = max(time.monotonic() - self._cleared, 1e-9)
        means = {name: total / count for name, (total, count) in self._sums.items()}
        num_samples = self._sums["num_samples"][0]
        means.pop("num_samples")
        num_values = means.pop("num_values")
        means.pop("num_latent_values", None)
        plain = {name: value for name, value in means.items() if "." not in name}
        if "kl_nats" in plain:
            plain["kl_bits_per_dim"] = plain["kl_nats"] / (math.log(2) * num_values)
        losses: dict[str, dict[str, float]] = {}
        parts: dict[str, Any] = {"losses": losses}
        for name, value in means.items():
            kind, _, rest = name.partition(".")
            if kind in ("losses", "weighted", "adaptive"):
                losses.setdefault(rest, {})["value" if kind == "losses" else kind] = value
            elif kind == "discriminators":
                owner, _, part = rest.rpartition(".")
                parts.setdefault(kind, {}).setdefault(owner, {})[part] = value
        return {**plain, **parts, "samples_per_second": num_samples / seconds}

    def _show(self, values: Mapping[str, float]) -> None:
        """Print the progress line: rates since the start, and the loss since the last line of the
        log.
        """
        assert self._progress is not None
        self._num_samples += values["num_samples"]
        total, count = self._sums["loss"]
        rate = self._num_samples / max(self._progress.seconds, 1e-9)
        self._progress.update(1, remark=f"loss {total / count:.5f}, {rate:.1f} samples/s")


def _drop_later(path: Path, step: int, evaluated: int) -> None:
    """Keep lines of steps up to `step` and of evaluations up to `evaluated`, without one that was
    cut off.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            if record["step"] <= (evaluated if "metrics" in record else step):
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    aside = path.with_suffix(".part")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)

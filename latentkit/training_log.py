"""What a training run tells: log.jsonl, a line of progress now and then, and what its KL weight means."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from latentkit.errors import TrainingError

PROGRESS_SECONDS = 10.0


def describe_kl(weights: Mapping[str, float], num_values: int) -> list[str]:
    """What the weight of `kl` stands for, in lines to print; none when it isn't used.

    Args:
        weights: of the run's losses by name; each loss is a mean over a sample's values, or nats per value.
        num_values: of one input sample.
    """
    beta = weights.get("kl", 0.0)
    if beta == 0:
        return []
    lines = [
        f"kl: weight {beta:g} per input value, the same number where reconstruction and KL are both summed (latent-diffusion); "
        f"{beta / num_values:.3g} where the reconstruction is a mean over {num_values:,} values and the KL a sum"
    ]
    if weights.get("mse"):
        deviation = math.sqrt(beta / (2 * weights["mse"]))
        lines.append(f"kl: that is the ELBO (beta 1) of a Gaussian decoder with standard deviation {deviation:.3g}")
    elif weights.get("l1"):
        lines.append(f"kl: that is the ELBO (beta 1) of a Laplace decoder with scale {beta / weights['l1']:.3g}")
    return lines


class TrainingLog:
    """Averages what steps saw, appends it to log.jsonl, hands it to trackers, and prints progress to stderr; in the first process only.

    Args:
        path: of log.jsonl.
        num_steps: of the whole run.
        accelerator: says which process this is, and has the trackers.
        weights: of the losses by name, as the recipe has them.
    """

    def __init__(self, path: Path, num_steps: int, accelerator: Accelerator, weights: Mapping[str, float]) -> None:
        self._path, self._num_steps, self._accelerator, self._weights = path, num_steps, accelerator, weights
        self._printed = -math.inf
        self._described = False

    def begin(self, step: int, settings: Mapping[str, Any]) -> None:
        """Start trackers and clock after `step` done steps; lines of later ones, which will be done again, are dropped."""
        if self._accelerator.log_with:
            self._accelerator.init_trackers(self._path.parent.name, {name: str(value) for name, value in settings.items()})
        self._first_step, self._started = step, time.monotonic()
        self._clear()
        if self._accelerator.is_main_process:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later(self._path, step)

    def note(self, text: str) -> None:
        """Print a line."""
        if self._accelerator.is_main_process:
            print(text, file=sys.stderr, flush=True)

    def add(self, values: Mapping[str, float]) -> None:
        """Count a step in.

        Args:
            values: averages over the step: "loss", "losses.NAME" (unweighted) with "weighted.NAME", "kl_nats" of a sample, "num_values" of
                one, and what else the log should have; "num_samples" counts those of the step.
        """
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value, count + 1
        if not self._described:
            self._described = True
            for line in describe_kl(self._weights, round(values["num_values"])):
                self.note(line)

    def write(self, step: int, epoch: int, num_skipped_steps: int) -> None:
        """Append the averages since the last line; print them when the last print was a while ago.

        Raises:
            TrainingError: the file can't be written.
        """
        record = {"step": step, "epoch": epoch, "num_skipped_steps": num_skipped_steps, **self._averages()}
        self._clear()
        self._append(record)
        now = time.monotonic()
        if now - self._printed >= PROGRESS_SECONDS or step == self._num_steps:
            self._printed = now
            self.note(self._progress(step, record, now))

    def write_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append an evaluation, {"step", "metrics"}, and print it; a metric that isn't finite is null.

        Raises:
            TrainingError: the file can't be written.
        """
        self._append({"step": step, "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()}})
        self.note(f"step {step}/{self._num_steps}  " + "  ".join(f"{name} {value:.5g}" for name, value in metrics.items()))

    def close(self) -> None:
        """End the trackers."""
        if self._accelerator.is_main_process:
            for tracker in self._accelerator.trackers:
                tracker.finish()

    def _append(self, record: Mapping[str, Any]) -> None:
        if not self._accelerator.is_main_process:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise TrainingError(f"{self._path} can't be written: {error.strerror}; the run goes on from its last checkpoint") from error
        self._accelerator.log({name: value for name, value in _flat(record) if name != "step"}, step=record["step"])

    def _clear(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._cleared = time.monotonic()

    def _averages(self) -> dict[str, Any]:
        """Means over the steps in which there was such a value: a loss doesn't count in every step."""
        seconds = max(time.monotonic() - self._cleared, 1e-9)
        num_samples = self._sums.pop("num_samples")[0]
        means = {name: total / count for name, (total, count) in self._sums.items()}
        num_values = means.pop("num_values")
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

    def _progress(self, step: int, record: Mapping[str, Any], now: float) -> str:
        left = (now - self._started) / max(step - self._first_step, 1) * (self._num_steps - step)
        speed = f"{record['samples_per_second']:.1f} samples/s"
        return f"step {step}/{self._num_steps}  loss {record['loss']:.5f}  {speed}  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Dotted name and value of every number."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value


def _drop_later(path: Path, step: int) -> None:
    """Keep the lines of steps up to `step`; a last line cut off by a kill goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            break
    aside = path.with_suffix(".part")
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)

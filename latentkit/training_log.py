"""What a training run tells: log.jsonl, a line of progress now and then, and what its KL weight means."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """Averages what steps saw, appends it to log.jsonl, and prints progress to stderr; does nothing where `active` is false.

    Args:
        path: of log.jsonl.
        num_steps: of the whole run.
        active: whether this process writes.
    """

    def __init__(self, path: Path, num_steps: int, active: bool) -> None:
        self._path, self._num_steps, self._active = path, num_steps, active
        self._weights: Mapping[str, float] = {}
        self._printed = -math.inf
        self._described = False

    def begin(self, step: int) -> None:
        """Start the clock after `step` done steps; lines of later ones, which will be done again, are dropped."""
        self._first_step, self._started = step, time.monotonic()
        self._clear()
        if self._active:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _drop_later(self._path, step)

    def note(self, text: str) -> None:
        """Print a line."""
        if self._active:
            print(text, file=sys.stderr, flush=True)

    def add(self, values: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Count a step in.

        Args:
            values: averages over the step: "loss", "losses.NAME" (unweighted), "kl_nats" of a sample, "num_values" of one, and what else
                the log should have; "num_samples" counts those of the step.
            weights: by name of the loss; 1 where it has none.
        """
        self._weights = weights
        self._num_steps_seen += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if not self._described:
            self._described = True
            for line in describe_kl(weights, round(values["num_values"])):
                self.note(line)

    def write(self, step: int, epoch: int, num_skipped_steps: int) -> None:
        """Append the averages since the last line; print them when the last print was a while ago.

        Raises:
            TrainingError: the file can't be written.
        """
        record = {"step": step, "epoch": epoch, "num_skipped_steps": num_skipped_steps, **self._averages()}
        self._clear()
        if not self._active:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise TrainingError(f"{self._path} can't be written: {error.strerror}; the run goes on from its last checkpoint") from error
        now = time.monotonic()
        if now - self._printed >= PROGRESS_SECONDS or step == self._num_steps:
            self._printed = now
            self.note(self._progress(step, record, now))

    def _clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._num_steps_seen = 0
        self._cleared = time.monotonic()

    def _averages(self) -> dict[str, Any]:
        seconds = max(time.monotonic() - self._cleared, 1e-9)
        means = {name: total / self._num_steps_seen for name, total in self._sums.items()}
        num_values, num_samples = means.pop("num_values"), means.pop("num_samples")
        plain = {name: value for name, value in means.items() if not name.startswith("losses.")}
        if "kl_nats" in plain:
            plain["kl_bits_per_dim"] = plain["kl_nats"] / (math.log(2) * num_values)
        named = {name.removeprefix("losses."): value for name, value in means.items() if name.startswith("losses.")}
        losses = {name: {"value": value, "weighted": value * self._weights.get(name, 1.0)} for name, value in named.items()}
        return {**plain, "losses": losses, "samples_per_second": num_samples * self._num_steps_seen / seconds}

    def _progress(self, step: int, record: Mapping[str, Any], now: float) -> str:
        left = (now - self._started) / max(step - self._first_step, 1) * (self._num_steps - step)
        speed = f"{record['samples_per_second']:.1f} samples/s"
        return f"step {step}/{self._num_steps}  loss {record['loss']:.5f}  {speed}  {_clock(left)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


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
    path.write_text("".join(kept), encoding="utf-8")

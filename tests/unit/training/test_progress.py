"""The live line of a training run, in a terminal and in a file.

Run as a script, this file logs one.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from accelerate import Accelerator

from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import l1
from latentkit.runtime import progress
from latentkit.training.log import TrainingLog
from latentkit.training.settings import WeightedLoss

LINE = r"(\d)/6 steps, [\d.]+/s, loss 0\.50000, [\d.]+ samples/s, \d+ s left"
VALUES = {
    "loss": 0.5,
    "losses.l1": 0.5,
    "weighted.l1": 0.5,
    "num_samples": 4.0,
    "num_values": 48.0,
    "num_latent_values": 12.0,
}


def log_four_steps(folder: Path, seconds: float = 0.0) -> None:
    """Of a run of six that went on from the second; each takes so many seconds."""
    losses = [WeightedLoss("l1", l1), WeightedLoss("kl", Kl(free_bits=0.5), 1e-6, "latent")]
    log = TrainingLog(folder / "log.jsonl", 6, Accelerator(), losses)
    log.begin(2, {})
    for step in range(3, 7):
        time.sleep(seconds)
        log.add(VALUES)
        log.write(step, 0, 0)
    log.close()


def test_a_file_gets_plain_lines_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    log_four_steps(tmp_path)
    *described, first, second, third, fourth, last = capfd.readouterr().err.splitlines()
    assert [
        found[1] for line in (first, second, third, fourth) if (found := re.fullmatch(LINE, line))
    ] == list("3456")
    assert last == "step 6/6  loss 0.50000"
    assert (
        described[-1]
        == "kl: the first 0.5 nats of each latent value are free, at most 6 nats a sample"
    )


def test_a_terminal_has_one_line_that_changes(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    process = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)], stderr=theirs, stdin=theirs
    )
    os.close(theirs)
    printed = read_all(ours)
    assert process.wait() == 0, printed
    shown = [part for part in re.split(r"[\r\n]+", printed) if "steps," in part]
    assert len(shown) >= 2
    assert all(re.search(LINE, part) for part in shown)
    assert "%" in shown[-1]
    assert (
        "\n" not in printed[printed.index(shown[0]) : printed.index(shown[-1])]
    ), "the line stays where it is"
    assert "step 6/6  loss 0.50000\r\n" in printed


def read_all(terminal: int) -> str:
    """What was written, until its last writer is gone."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # how Linux says that nobody is left
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    return b"".join(parts).decode()


if __name__ == "__main__":
    log_four_steps(Path(sys.argv[1]), seconds=0.2)  # more than a bar waits to change

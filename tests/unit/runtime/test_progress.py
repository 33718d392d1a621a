"""The live line."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from latentkit.runtime import progress
from latentkit.runtime.progress import Progress, format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (18120, "5 h 02 min"),
    ],
)
def test_seconds_are_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_lines_say_rate_waiting_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.15)
    printed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", printed)
    with Progress(100, "samples", shown=True) as line:
        line.update(10, 0.0)
        assert printed.getvalue() == ""  # too early for a line
        time.sleep(0.2)
        line.update(10, 0.1)
    assert re.fullmatch(
        r"20/100 samples, \d+\.\d/s, encoder waited \d+%, \d+ s left\n", printed.getvalue()
    )


def test_a_terminal_gets_a_bar_and_a_quiet_process_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    printed = Terminal()
    monkeypatch.setattr(sys, "stderr", printed)
    with Progress(2, "samples", shown=True) as bar:
        time.sleep(0.2)
        bar.update(2, 0.0)
    assert "encoder waited" in printed.getvalue()
    silent = Terminal()
    monkeypatch.setattr(sys, "stderr", silent)
    with Progress(2, "samples", shown=False) as bar:
        bar.update(2, 0.0)
    assert silent.getvalue() == ""

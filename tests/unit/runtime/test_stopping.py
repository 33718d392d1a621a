"""A signal ends the run wherever it arrives, also where Python ignores exceptions."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc, signal, time, weakref
from latentkit.runtime.stopping import SIGNALS, end_run_on
end_run_on(*SIGNALS)
class Thing:
    {inside}
{do}
for _ in range(1000):
    time.sleep(0.01)
print("the run went on to its end")
"""
IGNORING = {
    "finalizer": ("def __del__(self): signal.raise_signal({number})", "Thing()"),
    "callback of a weak reference": (
        "pass",
        "thing = Thing(); "
        "reference = weakref.ref(thing, lambda _: signal.raise_signal({number})); del thing",
    ),
    "callback of the garbage collector": (
        "pass",
        "gc.callbacks.append(lambda phase, _: phase == 'stop' and not gc.callbacks.clear()"
        " and signal.raise_signal({number})); gc.collect()",
    ),
}


@pytest.mark.parametrize("number", [2, 15])
@pytest.mark.parametrize("where", IGNORING)
def test_a_signal_in_a_place_that_ignores_exceptions_ends_the_run(where: str, number: int) -> None:
    inside, do = (text.format(number=number) for text in IGNORING[where])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(inside=inside, do=do)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert "Exception ignored" not in done.stderr
    word = "stopped" if number == 2 else "terminated"
    assert done.stderr.splitlines()[-1] == f"latentkit.errors.InterruptedRunError: {word}"


def test_other_ignored_exceptions_are_printed_as_before() -> None:
    program = PROGRAM.format(inside="def __del__(self): 1 / 0", do="Thing(); raise SystemExit")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Exception ignored in" in done.stderr
    assert "ZeroDivisionError" in done.stderr

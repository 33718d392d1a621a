"""What an exception inside somebody's plugin does: it costs one sample, or says on which samples it
came, and never hides.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from latentkit.errors import LatentkitError, SampleError
from latentkit.runtime.device import is_out_of_memory

_said: set[tuple[str, str, int]] = set()


def name_of(plugin: object) -> str:
    """Return the import path of the class that a plugin built, such as "acme_ecg.modality.Ecg"."""
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def describe_fault(plugin: object, error: BaseException) -> str:
    """Return one line: who raised what."""
    said = " ".join(str(error).split())
    return f"{name_of(plugin)} raised {type(error).__name__}" + (f": {said}" if said else "")


@contextmanager
def faults_cost_the_sample(plugin: object, key: str = "") -> Iterator[None]:
    """Turn an exception unknown to the contract into a `SampleError`; the first is printed.

    Args:
        plugin: the source or modality that is called inside the block.
        key: of the sample, for the printed line.

    Raises:
        SampleError: names the plugin and what it raised.
    """
    sample = f"sample {key!r} is left out" if key else "a sample is left out"
    with faults_become(SampleError, plugin, f"{sample}; on_bad_sample: fail stops there"):
        yield


@contextmanager
def faults_become(kind: type[LatentkitError], plugin: object, consequence: str) -> Iterator[None]:
    """Turn an exception that the contract doesn't know into one that it knows.

    Args:
        kind: raised instead.
        plugin: what is called inside the block.
        consequence: printed with the traceback of the first exception of its sort.
    """
    try:
        yield
    except (LatentkitError, OSError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        _print_once(plugin, consequence, error)
        raise kind(describe_fault(plugin, error)) from error


@contextmanager
def faults_name(plugin: object, doing: str) -> Iterator[None]:
    """Add to an exception who raised it and on what; users' own stay as they are."""
    try:
        yield
    except LatentkitError:
        raise
    except Exception as error:
        error.add_note(
            f"{name_of(plugin)} raised this while {doing}; what is committed is kept, run again to"
            " go on"
        )
        raise


def _print_once(plugin: object, consequence: str, error: Exception) -> None:
    """Print a traceback, once for each line that it comes from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = (type(error).__name__, last.filename, last.lineno or 0)
    if kind in _said:
        return
    _said.add(kind)
    text = "".join(traceback.format_exception(error)).rstrip()
    print(f"{text}\n{describe_fault(plugin, error)}: {consequence}", file=sys.stderr, flush=True)

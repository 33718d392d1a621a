"""Handles exceptions in a plugin's code: they skip one sample, or end the run with a message that
names the plugin and the samples.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from latentkit.errors import LatentkitError, SampleError
from latentkit.runtime.device import is_out_of_memory

_printed: set[tuple[str, str, int]] = set()


def name_of(plugin: object) -> str:
    """Return the import path of the class that a plugin built, such as "acme_ecg.modality.Ecg"."""
    return f"{type(plugin).__module__}.{type(plugin).__qualname__}"


def describe_fault(plugin: object, error: BaseException) -> str:
    """Return one line with the plugin's class and what it raised."""
    message = " ".join(str(error).split())
    return f"{name_of(plugin)} raised {type(error).__name__}" + (f": {message}" if message else "")


@contextmanager
def faults_skip_sample(plugin: object, key: str = "") -> Iterator[None]:
    """Turn an unexpected exception of a plugin into a `SampleError`. The first of its kind is
    printed with its traceback.

    Args:
        plugin: the source or modality that is called inside the block.
        key: key of the sample, for the printed line.

    Raises:
        SampleError: the message names the plugin and what it raised.
    """
    sample = f"sample {key!r} is left out" if key else "a sample is left out"
    with convert_faults(
        SampleError, plugin, f"{sample}; with on_bad_sample: fail the run stops there"
    ):
        yield


@contextmanager
def convert_faults(kind: type[LatentkitError], plugin: object, consequence: str) -> Iterator[None]:
    """Turn an unexpected exception of a plugin into an expected one.

    Args:
        kind: the error class that is raised instead.
        plugin: the plugin that is called inside the block.
        consequence: printed with the traceback of the first exception of its kind.
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
def add_context_to_faults(plugin: object, doing: str) -> Iterator[None]:
    """Add to an exception that ends the run which plugin raised it, and while doing what. Errors
    that users can deal with are unchanged.
    """
    try:
        yield
    except LatentkitError:
        raise
    except Exception as error:
        error.add_note(
            f"{name_of(plugin)} raised this while {doing}. Committed units are kept; run again to"
            " continue"
        )
        raise


def _print_once(plugin: object, consequence: str, error: Exception) -> None:
    """Print a traceback, unless one from the same line was printed: an error in the code occurs
    with every sample.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = (type(error).__name__, last.filename, last.lineno or 0)
    if kind in _printed:
        return
    _printed.add(kind)
    text = "".join(traceback.format_exception(error)).rstrip()
    print(f"{text}\n{describe_fault(plugin, error)}: {consequence}", file=sys.stderr, flush=True)

"""Processes that prepare samples, for modalities whose work holds Python's global lock. They end
with the process that started them.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from latentkit.errors import LatentkitError, PluginError
from latentkit.runtime.cores import share_of_cores

if TYPE_CHECKING:
    from latentkit.preparing.sample_preparer import PreparedSample, Preparer, Task


def open_processes(preparer: Preparer) -> ProcessPoolExecutor:
    """Start one process per core, each with a copy of the preparer.

    Raises:
        PluginError: the preparer can't be pickled.
    """
    try:
        pickled = pickle.dumps(preparer)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        text = (
            "the modality asks to be run in processes, but it or the source can't be pickled:"
            f" {error}"
        )
        raise PluginError(text) from error
    # Not forked: locks that this process's threads hold would stay locked in a child.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(share_of_cores(), context, _begin, (pickled,))


@contextmanager
def explain_dead_process() -> Iterator[None]:
    """Turn the death of a pool's process into a `LatentkitError`, when work is given to the pool or
    a result is taken.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise LatentkitError(
            "a process that prepares samples was killed (perhaps it ran out of memory) or couldn't"
            " start (a script must make its calls below `if __name__ == '__main__':`). Run again;"
            " committed units are kept"
        ) from error


def prepare_in_child(tasks: Sequence[Task]) -> list[PreparedSample]:
    """Prepare samples like `Preparer.prepare`, but return arrays: torch would send tensors through
    shared memory, which a killed process leaves behind.
    """
    return [
        _converted(outcome, lambda tensor: tensor.numpy()) for outcome in _preparer().prepare(tasks)
    ]


def as_tensors(outcomes: Sequence[PreparedSample]) -> list[PreparedSample]:
    """Return samples from a child process, with arrays turned back into tensors."""
    return [_converted(outcome, torch.from_numpy) for outcome in outcomes]


def _converted(outcome: PreparedSample, convert: Callable[[Any], Any]) -> PreparedSample:
    """Return a prepared sample with every tensor or array converted."""
    rows = []
    for row in outcome.rows:
        given = row.view.tensor
        tensor = (
            {name: convert(part) for name, part in given.items()}
            if isinstance(given, Mapping)
            else convert(given)
        )
        rows.append(replace(row, view=replace(row.view, tensor=tensor)))
    return replace(outcome, rows=rows)


_pickled = b""


@functools.cache
def _preparer() -> Preparer:
    """Return this process's copy of the preparer."""
    preparer: Preparer = pickle.loads(_pickled)
    return preparer


def _begin(pickled: bytes) -> None:
    """Initialize a child process."""
    global _pickled
    _pickled = pickled
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends this one
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this process if its parent was killed, because a child that waits for work never
    notices.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

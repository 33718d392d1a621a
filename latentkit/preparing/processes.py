"""Processes that prepare samples, for modalities whose work holds Python's lock; they end with the
process that started them.
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
    """A process per core, each with a copy of the preparer.

    Raises:
        PluginError: it can't be pickled.
    """
    try:
        pickled = pickle.dumps(preparer)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        text = (
            "the modality asks to be run in processes, but it or the source can't be pickled:"
            f" {error}"
        )
        raise PluginError(text) from error
    # Not forked: this process has threads, and whatever locks they hold would stay held in a child.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(share_of_cores(), context, _begin, (pickled,))


@contextmanager
def explained() -> Iterator[None]:
    """Turn the death of a process of the pool into a `LatentkitError`."""
    try:
        yield
    except BrokenProcessPool as error:
        raise LatentkitError(
            "a process that prepares samples was killed (perhaps for want of memory) or couldn't"
            " start (a script needs its calls below `if __name__ == '__main__':`); run again, what"
            " is committed is kept"
        ) from error


def prepare_in_child(tasks: Sequence[Task]) -> list[PreparedSample]:
    """As `Preparer.prepare`, with arrays: a killed child leaves torch's shared memory."""
    return [
        _converted(outcome, lambda tensor: tensor.numpy()) for outcome in _preparer().prepare(tasks)
    ]


def as_tensors(outcomes: Sequence[PreparedSample]) -> list[PreparedSample]:
    """What a child sent, with tensors again."""
    return [_converted(outcome, torch.from_numpy) for outcome in outcomes]


def _converted(outcome: PreparedSample, convert: Callable[[Any], Any]) -> PreparedSample:
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
    preparer: Preparer = pickle.loads(_pickled)
    return preparer


def _begin(pickled: bytes) -> None:
    global _pickled
    _pickled = pickled
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """A child that waits for work never notices by itself that its parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

"""Settings while a process encodes: threads and kernels, which affect the last bits of a sum, and
garbage collection.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from latentkit.runtime.device import make_current

MAX_GRAPHS = 4096


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Exclude existing objects from Python's garbage collections. Scanning the objects of torch and
    diffusers repeatedly costs several percent of decoding.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def fixed_numerics(threads: int, device: str) -> Iterator[None]:
    """Make the same batch give the same bits: this number of threads, deterministic kernels, and
    true float32 (no TF32).
    """
    make_current(device)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (
        torch.get_num_threads(),
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        matmul.allow_tf32,
    )
    torch.set_num_threads(threads)
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = (
        False,
        True,
        False,
        False,
    )
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before[1:]


@contextmanager
def allow_many_graphs(wanted: bool) -> Iterator[None]:
    """Let torch compile one graph for every shape. Beyond its default limit it would silently stop
    compiling.
    """
    if not wanted:
        yield
        return
    import torch._dynamo as dynamo

    limits = ("recompile_limit", "accumulated_recompile_limit")
    names = [name for name in limits if hasattr(dynamo.config, name)] or [
        "cache_size_limit",
        "accumulated_cache_size_limit",
    ]
    with dynamo.config.patch(dict.fromkeys(names, MAX_GRAPHS)):
        yield

"""How this process computes while it encodes: threads and kernels, which decide the last bits of a
sum, and garbage collection.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from latentkit.runtime.device import make_current

MAX_GRAPHS = 4096


@contextmanager
def frozen_garbage() -> Iterator[None]:
    """Keep what exists out of garbage collections, which cost decoding several percent."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def fixed_numerics(threads: int, device: str) -> Iterator[None]:
    """Encode so that one batch gives the same bits: threads, kernels, no TF32."""
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
def many_graphs(wanted: bool) -> Iterator[None]:
    """Let torch compile a graph for each shape: beyond its limit it silently stops."""
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

"""Exponential moving average of a module's weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warmed_decay(decay: float, num_updates: int) -> float:
    """Share of the average that the next update keeps, after `num_updates`: (1 + n) / (10 + n), at most `decay`.

    The early average then forgets the random start; from TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """Running average of every float parameter and buffer of a module; other buffers (counters) are copied.

    Args:
        module: starts the average as its current weights.
        decay: share of the average that one update keeps, once warmed up.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.tensors: dict[str, Tensor] = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's weights as they are now."""
        current = module.state_dict()
        floats = [name for name, tensor in current.items() if tensor.is_floating_point()]
        keep = warmed_decay(self.decay, self.num_updates)
        torch._foreach_lerp_([self.tensors[name] for name in floats], [current[name] for name in floats], 1 - keep)
        for name in current.keys() - set(floats):
            self.tensors[name].copy_(current[name])
        self.num_updates += 1

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Let the module have the averaged weights, and afterwards, also after an error, its own again, bit for bit."""
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Take up an average saved before."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.num_updates = num_updates

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for name, tensor in module.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(own)

"""Exponential moving average of a module's weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warmed_decay(decay: float, num_updates: int) -> float:
    """Return the share that the next update keeps: (1 + n) / (10 + n), at most `decay`.

    The early average then forgets the random start; from TensorFlow's
    `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """Moving average of a module's float parameters and buffers; others are copied.

    What doesn't change stays bit for bit what it was, or a frozen encoder's latents wouldn't be
    known as its own: frozen parameters are left alone, and buffers that are as they were; moving by
    nothing would make a zero of -0.

    Args:
        module: starts the average as its current weights.
        decay: share of the average that one update keeps, once warmed up.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's weights as they are now."""
        current = module.state_dict()
        parameters = dict(module.named_parameters(remove_duplicate=False))
        trained = [
            name for name in current if name in parameters and parameters[name].requires_grad
        ]
        share = 1 - warmed_decay(self.decay, self.num_updates)
        torch._foreach_lerp_(
            [self.tensors[name] for name in trained], [current[name] for name in trained], share
        )
        for name in current.keys() - parameters.keys():
            average, value = self.tensors[name], current[name]
            if value.is_floating_point():
                value = torch.where(average == value, average, average.lerp(value, share))
            average.copy_(value)
        self.num_updates += 1

    @contextmanager
    def swapped_in(self, module: nn.Module) -> Iterator[None]:
        """Give the module the averaged weights, and in the end its own, bit for bit."""
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

"""Exponential moving average of a module's weights and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def warmed_decay(decay: float, num_updates: int) -> float:
    """Return the share of the average that the next update keeps: (1 + n) / (10 + n) after n
    updates, at most `decay`.

    So the early average forgets the random start; from TensorFlow's
    `ExponentialMovingAverage(num_updates=...)`.
    """
    return min(decay, (1 + num_updates) / (10 + num_updates))


class WeightAverage:
    """Running average of every float parameter and buffer of a module. Other buffers (counters) are
    copied.

    What doesn't change stays bitwise the same, so that a frozen encoder keeps its fingerprint:
    frozen parameters and unchanged buffers are left alone, because even an update by nothing would
    turn -0 into 0.

    Args:
        module: the average starts as its current weights.
        decay: share of the average that one update keeps, after the warm-up.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's current weights."""
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
        """Give the module the averaged weights, and afterwards, also after an error, its own again,
        bit for bit.
        """
        self._swap(module)
        try:
            yield
        finally:
            self._swap(module)

    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Restore a saved average."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.num_updates = num_updates

    @torch.no_grad()
    def _swap(self, module: nn.Module) -> None:
        for name, tensor in module.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(own)

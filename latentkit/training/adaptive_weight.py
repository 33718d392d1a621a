"""The adaptive weight of a loss: the ratio of two gradient norms at the decoder's last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentkit.errors import TrainingError
from latentkit.training.settings import WeightedLoss
from latentkit.training.shared_state import Run

MAX_ADAPTIVE_WEIGHT = 1e4
ADAPTIVE_EPSILON = 1e-4
"""Both from Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", eq. 7,
and its code.
"""


def gradient_ratio(run: Run, reference: Tensor, value: Tensor, loss: WeightedLoss) -> Tensor:
    """Return the gradient norm of the reconstruction losses over that of `value`, at the last layer
    that both reach; clamped, without gradient.

    Gradients are averaged over processes first, like those of the step. A loss may be left out of a
    step, in some processes or in all.
    """
    layer, scale = run.last_layers[loss.role], run.state.scaler.get_scale()
    gradients = [
        gradient_at(layer, part * scale, loss.name).flatten() for part in (reference, value)
    ]
    flat = torch.cat([*gradients, value.new_full((1,), float(value.requires_grad))])
    means = run.accelerator.reduce(flat, "mean")
    wanted, own, counts = means.split([layer.numel(), layer.numel(), 1])
    ratio = wanted.norm() / scale / (own.norm() / scale + ADAPTIVE_EPSILON)
    clamped: Tensor = ratio.clamp(0, MAX_ADAPTIVE_WEIGHT).masked_fill(counts[0] <= 0, 0.0)
    return clamped.detach()


def gradient_at(layer: nn.Parameter, scalar: Tensor, name: str) -> Tensor:
    """Return the gradient of a scalar at a layer."""
    if not scalar.requires_grad:
        return torch.zeros_like(layer)
    (gradient,) = torch.autograd.grad(scalar, layer, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise TrainingError(
            f"loss {name!r} is adaptive, but it or the reconstruction loss doesn't reach the last"
            " layer"
        )
    found: Tensor = gradient
    return found

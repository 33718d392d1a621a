"""Losses `l1` and `mse`: how far a reconstruction is from its input, per value."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentkit.contracts import LossBatch


def l1(batch: LossBatch) -> Tensor:
    """Return each sample's mean absolute error, (N,) float32, in units of the input's range."""
    return mean_over_values(
        (batch.reconstruction.output.float() - batch.inputs.float()).abs(), batch.mask
    )


def mse(batch: LossBatch) -> Tensor:
    """Return each sample's mean squared error, (N,) float32, in squared units of the input."""
    return mean_over_values(
        (batch.reconstruction.output.float() - batch.inputs.float()).square(), batch.mask
    )


def mean_over_values(errors: Tensor, mask: Tensor | None) -> Tensor:
    """Average errors (N, C, ...) to (N,) where the mask is 1; 0 where a sample has none."""
    if mask is None:
        return errors.flatten(1).mean(dim=1)
    counts = mask.to(errors.dtype).expand_as(errors).flatten(1)
    return (errors.flatten(1) * counts).sum(dim=1) / counts.sum(dim=1).clamp(min=1)


def num_values(inputs: Tensor, mask: Tensor | None) -> Tensor:
    """Count each sample's values where the mask is 1, (N,) float32; at least 1."""
    if mask is None:
        return torch.full((len(inputs),), float(math.prod(inputs.shape[1:])), device=inputs.device)
    return mask.float().expand_as(inputs).flatten(1).sum(dim=1).clamp(min=1)

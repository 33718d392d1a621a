"""Batches as losses get them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentkit.contracts import LossBatch, Moments, Reconstruction


def make_batch(
    inputs: Tensor,
    output: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    latents: Tensor | None = None,
    moments: Moments | None = None,
    step: int = 0,
    decode: Callable[[Tensor], Tensor] = lambda latents: latents,
) -> LossBatch:
    """A batch of a model that encodes to what it is given; unless told, it reconstructs exactly,
    and its latents are zero.
    """
    return LossBatch(
        inputs=inputs,
        reconstruction=Reconstruction(
            inputs if output is None else output,
            torch.zeros(len(inputs), 1) if latents is None else latents,
            moments,
        ),
        mask=mask,
        step=step,
        encode=lambda values: values,
        decode=decode,
    )

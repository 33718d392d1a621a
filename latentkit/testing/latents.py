"""Helpers of the checks for encoders: encode, compare latents, and read random states."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import Encoder, LatentLayout
from latentkit.runtime.masks import masked_axes
from latentkit.testing.batches import Batch

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Latents = Mapping[str, Tensor]


def encode_without_mask(encoder: Encoder, batch: Batch) -> dict[str, Tensor]:
    """Return the result of `encode` for a batch, without "mask"."""
    given: Any = batch
    return {name: tensor for name, tensor in encoder.encode(given).items() if name != "mask"}


def counted_of(latents: Tensor, mask: Tensor, layout: LatentLayout) -> Tensor:
    """Return the latents at the positions that a mask counts."""
    places = [layout.axes.index(axis) + 1 for axis in masked_axes(layout, mask.ndim - 1)]
    return latents.cpu().movedim(places, list(range(1, len(places) + 1)))[mask]


def flip_bit(weight: Tensor) -> None:
    """Change the lowest bit of the first value of a weight, in place."""
    first = (0,) * weight.ndim
    with torch.inference_mode():  # weights loaded in that mode can be changed in that mode only
        bits = weight[first].clone().reshape(1).view(BITS[weight.element_size()])
        weight[first] = (bits ^ 1).view(weight.dtype)[0]


def deciding_parts(encoder: Encoder) -> dict[str, str]:
    """Return the parts of an encoder's fingerprint that decide latents, without the decoder and the
    hub's commit.
    """
    return {
        name: part
        for name, part in encoder.fingerprint().items()
        if not name.startswith(("decoder", "hub_commit"))
    }


def are_equal(first: Latents, second: Latents) -> bool:
    """Return whether two encodings agree bit for bit; nan equals nan."""
    return first.keys() == second.keys() and all(
        torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first
    )


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, message: str) -> None:
    """Raise `AssertionError` with the message where two tensors differ by more than the tolerance.
    """
    close = torch.allclose(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )
    assert close, message


def random_state() -> list[bytes]:
    """Return the states of the global generators of torch, NumPy and Python."""
    return [
        torch.random.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),
        pickle.dumps(random.getstate()),
    ]


def raised_by(encoder: Encoder, batch: Batch) -> Exception | None:
    """Return the exception that encoding a batch raises; None if there is none."""
    try:
        encode_without_mask(encoder, batch)
    except Exception as error:  # noqa: BLE001 (plugin boundary)
        return error
    return None

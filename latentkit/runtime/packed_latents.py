"""The media of a sample whose latents lie ready: its views and their tensors, as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

LOGVAR_LIMIT = 30.0
"""Log-variances below its negative are stored as that."""

HEADER_BYTES = 8
"""A safetensors file begins with the length of its header."""


def pack_latents(
    views: Mapping[str, Mapping[str, Tensor]], geometry: Mapping[str, Any] | None = None
) -> bytes:
    """Return the latents of a sample as its media, for the modality `latents`.

    Args:
        views: name of each view, such as "plain", to its tensors: "latent", or raw "mean" and
            "logvar" or "std" (the standard deviation), each (C, h, w) without batch axis, of any
            floating dtype.
        geometry: how the views were cut from their media, such as its `height` and `width` in
            pixels.
    """
    tensors = {
        f"{view}/{name}": tensor.contiguous()
        for view, named in views.items()
        for name, tensor in named.items()
    }
    # one entry, since the library writes several in an order that changes
    return save(tensors, {"geometry": json.dumps(geometry or {})})


def unpack_latents(media: bytes) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return views and geometry of `pack_latents`.

    Raises:
        ValueError: the bytes are something else.
    """
    try:
        tensors = load(media)
        length = int.from_bytes(media[:HEADER_BYTES], "little")
        header = json.loads(media[HEADER_BYTES : HEADER_BYTES + length])
        geometry = json.loads(header["__metadata__"]["geometry"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError("not latents as latentkit.kit.pack_latents returns them") from error
    views: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        view, _, name = full.rpartition("/")
        views.setdefault(view, {})[name] = tensor
    return views, geometry


def log_variance(std: Tensor) -> Tensor:
    """Return the log-variance, float32, whose `(logvar / 2).exp()` is nearest to a standard
    deviation.

    A logarithm rounded to float32 may be off by a digit of the standard deviation, so that an
    export of the import would differ in its last bits; of the neighbors the best is taken.
    """
    best = (2 * std.double().log()).clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT).float()
    wanted, up, down = std.float(), best, best
    for _ in range(2):
        up = torch.nextafter(up, torch.full_like(up, torch.inf))
        down = torch.nextafter(down, torch.full_like(down, -torch.inf))
        for other in (up, down):
            is_nearer = _distance(other, wanted) < _distance(best, wanted)
            best = torch.where(is_nearer, other, best)
    return best


def _distance(logvar: Tensor, std: Tensor) -> Tensor:
    return ((logvar / 2).exp() - std).abs()

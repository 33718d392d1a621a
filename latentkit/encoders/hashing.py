"""Hashes of weights, for fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_tensors(named: Mapping[str, Tensor]) -> str:
    """Return the sha256 (64 hexadecimal digits) of tensors: over name, dtype, shape and bytes,
    sorted by name.

    The device and the memory format make no difference. The dtype does, so hash tensors in the
    dtype that they are computed with.

    Args:
        named: tensors of any shape, dtype and device, such as a `state_dict()` or a part of one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        shape = "x".join(str(size) for size in tensor.shape)
        digest.update(f"{name}\0{str(tensor.dtype).removeprefix('torch.')}\0{shape}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Hashes of weights: what fingerprints are made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def hash_tensors(named: Mapping[str, Tensor]) -> str:
    """Return the sha256 of names, dtypes, shapes and bytes of tensors, sorted by name.

    The device and the memory format make no difference; the dtype does, so hash the tensors as they
    are computed with.

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

"""Finds weights of LPIPS networks in common files, by number of the layer and of the head."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

LAYER = re.compile(r"(?:features\.|(?:.*\.)?slice\d+\.)?(\d+)\.(weight|bias|filt)")
"""torchvision's "features.0.weight", LPIPS's "net.slice1.0.weight", with or without a prefix, or
"0.weight".
"""
HEAD = re.compile(r"(?:.*\.)?lin(\d)\.model\.\d+\.weight")
"""LPIPS's "lin0.model.1.weight", with or without a prefix."""


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Return tensors of layers as "0.weight", and tensors of heads by number. All others, such as a
    classifier's, are ignored.
    """
    layers = {
        f"{found[1]}.{found[2]}": value
        for name, value in tensors.items()
        if (found := LAYER.fullmatch(name))
    }
    heads = {
        int(found[1]): value for name, value in tensors.items() if (found := HEAD.fullmatch(name))
    }
    return layers, heads


def find_packaged(package: str, file: str) -> Path | None:
    """Return the file inside an installed package, which isn't imported; None if it is missing."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    return None

"""Weights of LPIPS networks from the files that people have, by number of the layer and of the head."""

from __future__ import annotations

import importlib.util
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latentkit.errors import EncoderError

LAYER = re.compile(r"(?:features\.|(?:.*\.)?slice\d+\.)?(\d+)\.(weight|bias|filt)")
"""torchvision's "features.0.weight", LPIPS's "net.slice1.0.weight", also behind a prefix, or "0.weight"."""
HEAD = re.compile(r"(?:.*\.)?lin(\d)\.model\.\d+\.weight")
"""LPIPS's "lin0.model.1.weight", also behind a prefix."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU.

    Raises:
        EncoderError: there is no such file, or it is something else than weights: a web page, a pickle of objects, cut off.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as err:
        raise EncoderError(f"{path}: expected a file of weights: {err.strerror}") from err
    if start.lstrip().startswith(b"<"):
        raise EncoderError(f"{path} is a web page, not weights: what was saved is the page about the file; download the file itself")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a refused pickle is an error already
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError) as err:
        raise EncoderError(_explain(path, start, err)) from err
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise EncoderError(f"{path}: expected tensors by name, as state_dict() gives them, got {_describe(found)}")
    return dict(found)


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Tensors of layers as "0.weight", and of heads by number; all others, such as a classifier's, are left out."""
    layers = {f"{found[1]}.{found[2]}": value for name, value in tensors.items() if (found := LAYER.fullmatch(name))}
    heads = {int(found[1]): value for name, value in tensors.items() if (found := HEAD.fullmatch(name))}
    return layers, heads


def find_packaged(package: str, file: str) -> Path | None:
    """The file inside an installed package, which is not imported; None when it isn't there."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    return None


def _explain(path: Path, start: bytes, err: Exception) -> str:
    if isinstance(err, pickle.UnpicklingError) and start.startswith((b"PK", b"\x80")):
        return (
            f"{path} holds Python objects besides tensors, and is not loaded: a pickle can run any program. "
            "Where you trust it, load it once with torch.load(..., weights_only=False) and save its state_dict() as .safetensors"
        )
    return f"{path}: expected weights, .safetensors or .pth as torch.save writes it; it is damaged, cut off or something else"


def _describe(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    others = sorted({type(value).__name__ for value in found.values()} - {"Tensor", "Parameter"})
    return f"a mapping that also holds {', '.join(others)} ({', '.join(map(str, list(found)[:4]))} ...)" if others else "nothing"

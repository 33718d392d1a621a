"""Tensors from a file of weights that somebody downloaded, or a message that says what the file is instead. No pickle is run."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from latentkit.errors import EncoderError


def read_tensors(path: Path, where_from: str = "") -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU: .safetensors, else what torch.save wrote, a trainer's whole checkpoint too.

    Args:
        path: of the file.
        where_from: how to get such a file, for the message when it isn't there.

    Raises:
        EncoderError: there is no such file, or it is something else than weights: a web page, a program, a pickle of objects, cut off.
    """
    refuse_pages(path, where_from)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickles; those that matter are refused
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle fails with any
        raise EncoderError(_why_unreadable(path, error)) from error
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        wanted = "tensors by name, as state_dict() gives them, alone or under state_dict"
        raise EncoderError(f"{path}: expected {wanted}; got {_describe(found)}")
    return dict(found)


def refuse_pages(path: Path, where_from: str = "") -> None:
    """Nothing, if the file may be weights, by its first bytes.

    Args:
        where_from: how to get such a file, for the message when it isn't there.

    Raises:
        EncoderError: there is no such file, or it is a web page or a pointer of git-lfs.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise EncoderError(f"{path}: expected a file of weights: {error.strerror}" + (f"; {where_from}" if where_from else "")) from error
    if start.lstrip().startswith(b"<"):
        raise EncoderError(f"{path} is a web page, not weights: what was saved is the page about the file; download the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(f"{path} is a pointer of git-lfs, not weights; `git lfs pull` in its repository gets the file itself")


def _why_unreadable(path: Path, error: Exception) -> str:
    if refused := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"{path} holds Python objects besides tensors ({refused[1]}), and is not loaded: a pickle can run any program. "
            "Where you trust it, load it once with torch.load(..., weights_only=False) and save its state_dict() as .safetensors"
        )
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, which is not run; expected the network's state_dict(), as .safetensors or .pth"
    return f"{path}: expected weights, .safetensors or .pth as torch.save writes it; it is damaged, cut off or something else"


def _describe(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    others = sorted({type(value).__name__ for value in found.values()} - {"Tensor", "Parameter"})
    return f"a mapping that also holds {', '.join(others)} ({', '.join(map(str, list(found)[:4]))} ...)" if others else "nothing"

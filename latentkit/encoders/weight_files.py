"""Reads tensors from a downloaded weights file, or explains what the file is instead. No pickle is
run.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from latentkit.encoders.weight_unpickling import StandIn, load_inert
from latentkit.errors import EncoderError

KNOWN_OTHER_FILES = {
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it first",
    b"7z\xbc\xaf": "an archive of 7-Zip: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"GGUF": "a GGUF file, which holds quantized weights: get the model's .safetensors",
    b"\x89HDF": "an HDF5 file, as Keras writes it: get the model's .safetensors",
    b"\x93NUMPY": "an array of NumPy: get the model's .safetensors",
}
"""First bytes of files that aren't weights, and what the message says about them."""

PICKLED_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""Near the start of files that torch.save wrote before torch 1.6."""

WANTED = "expected weights, .safetensors or as torch.save writes them"
MAX_DEPTH = 8
"""Depth to which nested mappings are searched."""


def read_tensors(path: Path, where_from: str = "") -> dict[str, Tensor]:
    """Return all tensors of a file by name, on the CPU: from safetensors, or from what torch.save
    wrote, including a trainer's whole checkpoint.

    Args:
        path: path of the file; its first bytes decide its format, whatever its ending.
        where_from: how to get such a file, for the message if it is missing.

    Raises:
        EncoderError: the file is missing, isn't a weights file (a web page, a program, cut off),
            or contains several networks, none of them under `state_dict`.
    """
    found = _read(path, where_from)
    groups = dict(_find_tensor_mappings(found))
    for name in ("state_dict", ""):
        if name in groups:
            return groups[name]
    if len(groups) == 1:
        return next(iter(groups.values()))
    wanted = (
        "tensors by name, as state_dict() gives them, alone or under one name such as state_dict"
    )
    got = f"tensors under {', '.join(groups)}" if groups else _describe(found)
    raise EncoderError(f"{path}: expected {wanted}; got {got}")


def read_all_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a file by its full name: "ema.encoder.conv_in.weight" is
    `encoder.conv_in.weight` in the mapping `ema`.

    Raises:
        EncoderError: as for `read_tensors`, or the file contains no named tensor.
    """
    found = _read(path, "")
    tensors = {
        f"{group}.{name}" if group else name: value
        for group, named in _find_tensor_mappings(found)
        for name, value in named.items()
    }
    if not tensors:
        raise EncoderError(
            f"{path}: expected tensors by name, as state_dict() gives them; got {_describe(found)}"
        )
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts stored in a safetensors file; nothing for any other file."""
    if not _is_safetensors(_read_start(path)):
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def check_is_weights(path: Path, where_from: str = "") -> None:
    """Check by its first bytes that a file may contain weights.

    Args:
        where_from: how to get such a file, for the message if it is missing.

    Raises:
        EncoderError: the file is missing, or it is a web page, a pointer of git-lfs, or some other
            file that isn't weights.
    """
    try:
        start = _read_start(path)
    except OSError as error:
        raise EncoderError(
            f"{path}: expected a file of weights: {error.strerror}"
            + (f"; {where_from}" if where_from else "")
        ) from error
    if not start:
        raise EncoderError(f"{path}: {WANTED}; the file is empty; get it again")
    if _is_safetensors(start):
        return
    if start.lstrip().startswith(b"<"):
        raise EncoderError(
            f"{path} is a web page, not weights: the page about the file was saved. Download the"
            " file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(
            f"{path} is a pointer of git-lfs, not weights. Run `git lfs pull` in its repository to"
            " get the file itself"
        )
    for first, kind in KNOWN_OTHER_FILES.items():
        if start.startswith(first):
            raise EncoderError(f"{path}: {WANTED}; it is {kind}")
    if start[257:262] == b"ustar":
        raise EncoderError(f"{path}: {WANTED}; it is a tar archive: unpack it first")
    if start.isascii() and start.decode().isprintable() and 8 <= path.stat().st_size < 10_000:
        raise EncoderError(
            f"{path}: {WANTED}; it is damaged, cut off or something else: a text such as a server's"
            f" answer: {start[:80].decode().strip()!r}"
        )


def _read_start(path: Path) -> bytes:
    """Return the first 512 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(512)


def _is_safetensors(start: bytes) -> bool:
    """Return whether a file starts like safetensors: a header length in eight bytes, then JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _read(path: Path, where_from: str) -> Any:
    """Return what a file contains: a mapping of tensors or of more, or anything that torch.save
    accepts.
    """
    check_is_weights(path, where_from)
    start = _read_start(path)
    try:
        if _is_safetensors(start):
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # about pickles; unsafe ones are refused
            return _read_saved(path)
    except Exception as error:  # a damaged pickle raises any error
        raise EncoderError(_why_unreadable(path, start, error)) from error


def _read_saved(path: Path) -> Any:
    """Return what torch.save wrote, or what is in a .safetensors file."""
    if path.suffix == ".safetensors":  # by which torch.load would go
        with path.open("rb") as file:
            return _load(file, False)
    return _load(path, zipfile.is_zipfile(path))


def _load(file: Path | IO[bytes], mmap: bool) -> Any:
    """Load with torch's safe unpickler, or with inert stand-ins if the pickle names more than
    tensors.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # it names more than tensors
        if not isinstance(file, Path):
            file.seek(0)
        return load_inert(file, mmap)


def _find_tensor_mappings(
    found: object, name: str = "", above: tuple[int, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping that contains tensors, by its dotted name; "" is the outermost.
    Everything else is skipped.

    Args:
        above: ids of the mappings that contain this one; a mapping may contain itself.
        seen: ids of mappings that were already searched; if several contain one, its own tensors
            are yielded under each name, and the mappings inside it once.
    """
    seen = set() if seen is None else seen
    if not isinstance(found, dict) or len(above) > MAX_DEPTH or id(found) in above:
        return
    entries = [(key, value) for key, value in dict.items(found) if isinstance(key, str)]
    tensors = {key: value.detach() for key, value in entries if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    if id(found) in seen:
        return
    seen.add(id(found))
    for key, value in entries:
        yield from _find_tensor_mappings(
            value, f"{name}.{key}" if name else key, (*above, id(found)), seen
        )


def _why_unreadable(path: Path, start: bytes, error: Exception) -> str:
    """Return a message on what a file is that couldn't be read as weights."""
    if "TorchScript" in str(error):
        return (
            f"{path} is a TorchScript program, which is not run; expected the network's"
            " state_dict(), as .safetensors or .pth"
        )
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return f"{path}: {WANTED}; it is damaged, cut off or something else: its end is missing"
        with zipfile.ZipFile(path) as archive:
            if not any(name.endswith("data.pkl") for name in archive.namelist()):
                return f"{path}: {WANTED}; it is a zip archive of other files: unpack it first"
    if start.startswith(b"\x80") and PICKLED_MAGIC not in start and len(start) > 20:
        return (
            f"{path} contains other Python objects than tensors, as pickle.dump writes them. It is"
            " not loaded, because a pickle can run any program. If you trust the file, save its"
            " tensors as .safetensors"
        )
    return (
        f"{path}: {WANTED}; it is damaged, cut off or something else ({path.stat().st_size} bytes)"
    )


def _describe(found: object) -> str:
    """Return a short description of an object that torch.save wrote, for a message."""
    if isinstance(found, StandIn):
        return (
            f"an object ({type(found).__name__}), as torch.save(model) writes it; save"
            " model.state_dict() instead"
        )
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    others = sorted({type(value).__name__ for value in dict(found).values()})
    return (
        f"a mapping that also holds {', '.join(others)} ({', '.join(map(str, list(found)[:4]))}"
        " ...)"
        if others
        else "nothing"
    )

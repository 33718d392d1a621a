"""Tensors from a file of weights that somebody downloaded, or a message that says what the file is
instead. No pickle is run.
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

OTHERS = {
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
"""First bytes of what is no file of weights, and what is said of it."""

PICKLED_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""Near the start of what torch.save wrote before torch 1.6."""

WANTED = "expected weights, .safetensors or as torch.save writes them"
DEEPEST = 8
"""Mappings within mappings that are looked into."""


def read_tensors(path: Path, where_from: str = "") -> dict[str, Tensor]:
    """Return a file's tensors, on the CPU: of safetensors, torch.save, or a whole checkpoint.

    Args:
        path: of the file; its first bytes decide what it is, whatever its ending.
        where_from: how to get such a file, for the message when it isn't there.

    Raises:
        EncoderError: there is no such file, it is something else than weights (a web page, a
            program, cut off ...), or it holds several networks, none of them under `state_dict`.
    """
    found = _read(path, where_from)
    groups = dict(_groups(found))
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
    """Every tensor of a file by its full name: "ema.encoder.conv_in.weight" is
    `encoder.conv_in.weight` of the mapping under `ema`.

    Raises:
        EncoderError: as `read_tensors`; or there is no tensor with a name in it.
    """
    found = _read(path, "")
    tensors = {
        f"{group}.{name}" if group else name: value
        for group, named in _groups(found)
        for name, value in named.items()
    }
    if not tensors:
        raise EncoderError(
            f"{path}: expected tensors by name, as state_dict() gives them; got {_describe(found)}"
        )
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds beside its tensors; of any other file none."""
    if not _is_safetensors(_start(path)):
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def refuse_pages(path: Path, where_from: str = "") -> None:
    """Nothing, if the file may be weights, by its first bytes.

    Args:
        where_from: how to get such a file, for the message when it isn't there.

    Raises:
        EncoderError: there is no such file, or it is a web page, a pointer of git-lfs, or another
            kind of file that is no weights.
    """
    try:
        start = _start(path)
    except OSError as error:
        raise EncoderError(
            f"{path}: expected a file of weights: {error.strerror}"
            + (f"; {where_from}" if where_from else "")
        ) from error
    if not start:
        raise EncoderError(
            f"{path}: {WANTED}; it is damaged, cut off or something else: it is empty; get it again"
        )
    if _is_safetensors(start):
        return
    if start.lstrip().startswith(b"<"):
        raise EncoderError(
            f"{path} is a web page, not weights: what was saved is the page about the file;"
            " download the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise EncoderError(
            f"{path} is a pointer of git-lfs, not weights; `git lfs pull` in its repository gets"
            " the file itself"
        )
    for first, said in OTHERS.items():
        if start.startswith(first):
            raise EncoderError(f"{path}: {WANTED}; it is {said}")
    if start[257:262] == b"ustar":
        raise EncoderError(f"{path}: {WANTED}; it is a tar archive: unpack it first")
    if start.isascii() and start.decode().isprintable() and 8 <= path.stat().st_size < 10_000:
        raise EncoderError(
            f"{path}: {WANTED}; it is damaged, cut off or something else: a text such as a server's"
            f" answer: {start[:80].decode().strip()!r}"
        )


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(512)


def _is_safetensors(start: bytes) -> bool:
    """The length of a header in eight bytes, then JSON."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000


def _read(path: Path, where_from: str) -> Any:
    """What a file holds: a mapping of tensors or of more, or anything that torch.save takes."""
    refuse_pages(path, where_from)
    start = _start(path)
    try:
        if _is_safetensors(start):
            return load_file(path)
        with warnings.catch_warnings(
            action="ignore"
        ):  # about pickles; those that matter are refused
            return _read_saved(path)
    except Exception as error:  # a damaged pickle fails with any
        raise EncoderError(_why_unreadable(path, start, error)) from error


def _read_saved(path: Path) -> Any:
    if path.suffix == ".safetensors":  # by which torch.load would go
        with path.open("rb") as file:
            return _load(file, False)
    return _load(path, zipfile.is_zipfile(path))


def _load(file: Path | IO[bytes], mmap: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError:  # it names more than tensors
        if not isinstance(file, Path):
            file.seek(0)
        return load_inert(file, mmap)


def _groups(
    found: object, name: str = "", above: tuple[int, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Mappings of tensors, by their dotted names, "" for the outermost; what else lies in them is
    left out.

    Args:
        above: ids of the mappings that it lies in, which may lie in it.
        seen: ids of those looked into; one that lies in several gives its own tensors under each
            name, and the rest once.
    """
    seen = set() if seen is None else seen
    if not isinstance(found, dict) or len(above) > DEEPEST or id(found) in above:
        return
    entries = [(key, value) for key, value in dict.items(found) if isinstance(key, str)]
    tensors = {key: value.detach() for key, value in entries if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    if id(found) in seen:
        return
    seen.add(id(found))
    for key, value in entries:
        yield from _groups(value, f"{name}.{key}" if name else key, (*above, id(found)), seen)


def _why_unreadable(path: Path, start: bytes, error: Exception) -> str:
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
            f"{path} holds Python objects besides tensors, as pickle.dump writes them, and is not"
            " loaded: a pickle can run any program. Where you trust it, save its tensors as"
            " .safetensors"
        )
    return (
        f"{path}: {WANTED}; it is damaged, cut off or something else ({path.stat().st_size} bytes)"
    )


def _describe(found: object) -> str:
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

"""What sources of latents that lie ready share: tensors of a file, and samples of them."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from latentkit.contracts import BuildContext, Entry, KnownLatents, Remark, Sample
from latentkit.errors import SampleError, SourceError
from latentkit.runtime.packed_latents import pack_latents
from latentkit.runtime.paths import is_url

TENSOR_SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".safetensors")

UNREADABLE = (
    *(ValueError, TypeError, KeyError, IndexError, EOFError, RuntimeError, struct.error),
    *(zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, SafetensorError),
)
"""What readers raise for content that is damaged, or of another kind."""


@dataclass(frozen=True)
class Latents:
    """The latents of one sample, see `latentkit.kit.pack_latents`."""

    views: Mapping[str, Mapping[str, Tensor]]
    geometry: Mapping[str, Any] | None = None


class LatentSource(ABC):
    """A source whose samples are latents of a cache, for `latentkit import`.

    A subclass finds the samples when it is made, says what is known of each without reading its
    latents, and reads them. What its `read` raises for damaged content costs that sample alone.
    """

    known: KnownLatents = KnownLatents()
    """What the format tells of all latents."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def entry(self, index: int) -> Entry:
        """Key, stamp and attributes of the sample at a position."""

    @abstractmethod
    def read(self, index: int) -> Latents:
        """The latents of the sample at a position.

        Raises:
            OSError: the file can't be reached.
            ValueError: the content isn't what the format has; also what libraries raise for it.
        """

    def remarks(self) -> list[Remark]:
        """What was found and isn't used."""
        return []

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position, its latents as media.

        Raises:
            SampleError: its file is damaged, or holds something else.
        """
        index = range(len(self))[index]
        entry = self.entry(index)
        try:
            latents = self.read(index)
            media = pack_latents(latents.views, latents.geometry)
        except UNREADABLE as error:
            said = " ".join(str(error).split())
            raise SampleError(
                f"its latents can't be read: {said or type(error).__name__}"
            ) from error
        return Sample(entry.key, media, entry.attributes, entry.stamp)

    def entries(self) -> Iterator[Entry]:
        """One entry per sample, in order."""
        return map(self.entry, range(len(self)))

    # ------------------------------------------------------------ for subclasses

    @staticmethod
    def find_folder(path: str, context: BuildContext) -> Path:
        """Return the folder of a cache, relative to the recipe.

        Raises:
            SourceError: it isn't there, or is no local folder.
        """
        if is_url(path):
            raise SourceError(f"{path}: expected a local folder to import; copy it from the URL")
        folder = context.recipe_dir / Path(path).expanduser()
        if not folder.is_dir():
            raise SourceError(f"{folder}: expected the folder of a cache, which isn't there")
        return folder

    @staticmethod
    def list_files(folder: Path, *endings: str) -> list[str]:
        """Return the files with these endings (lower case) below a folder, hidden ones left out:
        relative paths with "/", sorted.
        """
        found: list[str] = []
        for parent, below, names in os.walk(folder, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            start = Path(parent).relative_to(folder).as_posix()
            prefix = "" if start == "." else f"{start}/"
            found += [
                prefix + name
                for name in names
                if name.lower().endswith(endings) and not name.startswith(".")
            ]
        return sorted(found)

    @staticmethod
    def stamp_of(file: Path) -> str:
        """Return a text that changes when the file does.

        Raises:
            SourceError: it can't be reached.
        """
        try:
            status = file.stat()
        except OSError as error:
            raise SourceError(f"{file} can't be reached: {error.strerror or error}") from error
        return f"{status.st_size}-{status.st_mtime_ns}"

    @staticmethod
    def read_tensors(file: Path) -> dict[str, Tensor]:
        """Return the tensors in a .npy, .npz, .pt, .pth or .safetensors by name; "" names the one
        of a file that has no names. Nothing is unpickled but tensors.

        Raises:
            ValueError: it holds something else; and what libraries raise for damaged files.
        """
        return parse_tensors(file.read_bytes(), file.suffix.lower())

    @staticmethod
    def split_moments(tensor: Tensor, spread: Literal["logvar", "std"]) -> dict[str, Tensor]:
        """Return the halves of a tensor (2C, ...) along its channels: "mean", and `spread`.

        Raises:
            ValueError: the number of channels is odd.
        """
        if tensor.ndim < 2 or len(tensor) % 2:
            shape = tuple(tensor.shape)
            raise ValueError(f"expected mean and {spread}, (2C, ...), got shape {shape}")
        mean, other = tensor.chunk(2)
        return {"mean": mean, spread: other}


def parse_tensors(content: bytes, ending: str) -> dict[str, Tensor]:
    """Return the tensors in a file's bytes by name; "" names the one of a file that has no names.

    Args:
        ending: of its name, one of `TENSOR_SUFFIXES`.

    Raises:
        ValueError: it holds something else; and what libraries raise for damaged files.
    """
    if ending == ".safetensors":
        return load_safetensors(content)
    if ending in (".pt", ".pth"):
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    else:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
    if isinstance(loaded, np.ndarray | Tensor):
        return {"": as_tensor(loaded)}
    if not isinstance(loaded, Mapping):
        raise ValueError(f"expected a tensor or a mapping of tensors, got {type(loaded).__name__}")
    return {
        str(name): as_tensor(value)
        for name, value in loaded.items()
        if isinstance(value, np.ndarray | Tensor)
    }


def as_tensor(values: Any) -> Tensor:
    """Return an array as a tensor."""
    if isinstance(values, Tensor):
        return values.detach()
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def without_batch_axis(tensor: Tensor, num_axes: int) -> Tensor:
    """Return a latent (1, C, h, w) as (C, h, w)."""
    return tensor[0] if tensor.ndim == num_axes + 1 and len(tensor) == 1 else tensor

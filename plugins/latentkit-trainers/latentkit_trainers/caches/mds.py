"""Source `mds`: shards of MosaicML's streaming, as micro_diffusion and mosaicml/diffusion cache
latents in them.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import BuildContext, Entry, KnownLatents
from latentkit.errors import SourceError
from latentkit.kit import Latents, LatentSource
from latentkit_trainers.caches.options import MdsCacheConfig

INDEX = "index.json"
SIZED = re.compile(r"latents_(\d+)")
USUAL = ("latents", "latent", "latents_256", "latents_512")
NUMBERS = {
    **{f"int{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "int": "int64",
}
"""Encodings of a number to NumPy's dtype; `int` has 8 bytes."""


class MdsCache(LatentSource):
    """index.json, version 2, and uncompressed shards. Columns of texts and numbers are attributes;
    `key` and `view`, as latentkit exports them, name a sample and its views, else it is its number.
    """

    def __init__(self, config: MdsCacheConfig, context: BuildContext) -> None:
        self._config = config
        self._folder = self.find_folder(config.path, context)
        self._shards = _read_index(self._folder / INDEX)
        first = self._shards[0]
        self._columns = dict(zip(first["column_names"], first["column_encodings"], strict=True))
        self._sizes = dict(zip(first["column_names"], first["column_sizes"], strict=True))
        self._latent = _latent_column(self._columns, config.latent, self._folder)
        # The name has the size of the pictures, and the latents' that of a downscale of 8.
        self.known = KnownLatents(downscale=8 if SIZED.fullmatch(self._latent) else None)
        counts = (int(shard["samples"]) for shard in self._shards)
        self._starts = [0, *itertools.accumulate(counts)]
        self._files = [self._folder / shard["raw_data"]["basename"] for shard in self._shards]
        self._stamps = [self.stamp_of(file) for file in self._files]
        self._samples = self._find_samples()

    def _find_samples(self) -> list[tuple[str, dict[str, int]]]:
        """Return the key of each sample, and the number of the row of each view."""
        if not {"key", "view"} <= set(self._columns):
            return [(f"{number:09d}", {"plain": number}) for number in range(self._starts[-1])]
        samples: dict[str, dict[str, int]] = {}
        for number in range(self._starts[-1]):
            said = self._attributes(number)
            views = samples.setdefault(str(said.get("key", f"{number:09d}")), {})
            views[str(said.get("view", "plain"))] = number
        return list(samples.items())

    def __len__(self) -> int:
        return len(self._samples)

    def entry(self, index: int) -> Entry:
        """Return key, stamps of the shards with it, and attributes."""
        key, views = self._samples[index]
        places = map(self._place, views.values())
        stamp = " ".join(f"{self._stamps[shard]}-{row}" for shard, row in places)
        attributes = self._attributes(next(iter(views.values())))
        if {"key", "view"} <= set(self._columns):
            attributes = {k: said for k, said in attributes.items() if k not in ("key", "view")}
        return Entry(key, stamp, attributes)

    def _place(self, number: int) -> tuple[int, int]:
        """Return the shard of a row, and its place in it."""
        shard = bisect.bisect_right(self._starts, number) - 1
        return shard, number - self._starts[shard]

    def _attributes(self, number: int) -> dict[str, Any]:
        """Return texts and numbers of a sample; none of one that is cut off."""
        found: dict[str, Any] = {}
        try:
            parts = self._parts(*self._place(number))
        except (ValueError, struct.error):
            return found
        for name, encoding in self._columns.items():
            if encoding == "str":
                is_text = name == self._config.text
                found["text" if is_text else name] = parts[name].decode(errors="replace")
            elif encoding == "json":
                found[name] = json.loads(parts[name])
            elif encoding in NUMBERS:
                found[name] = np.frombuffer(parts[name], NUMBERS[encoding])[0].item()
        return found

    def _parts(self, shard: int, row: int) -> dict[str, bytes]:
        """Return the bytes of each column of a sample.

        Raises:
            ValueError: the shard ends before.
        """
        with self._files[shard].open("rb") as file:
            file.seek(4 + 4 * row)
            begin, end = struct.unpack("<II", file.read(8))
            file.seek(begin)
            content = file.read(end - begin)
        if len(content) != end - begin:
            raise ValueError(f"the shard ends {end - begin - len(content)} bytes too early")
        open_columns = [name for name, size in self._sizes.items() if size is None]
        lengths = struct.unpack_from(f"<{len(open_columns)}I", content)
        sizes = self._sizes | dict(zip(open_columns, lengths, strict=True))
        places = [4 * len(open_columns), *sizes.values()]
        ends = list(itertools.accumulate(places))
        spans = zip(sizes, itertools.pairwise(ends), strict=True)
        return {name: content[first:last] for name, (first, last) in spans}

    def read(self, index: int) -> Latents:
        """Read the latents of a sample."""
        views = self._samples[index][1]
        return Latents({view: {"latent": self._read_row(row)} for view, row in views.items()})

    def _read_row(self, number: int) -> Tensor:
        content = self._parts(*self._place(number))[self._latent]
        encoding = self._columns[self._latent]
        if encoding.startswith("ndarray"):
            return _decode_array(content, encoding)
        values = np.frombuffer(content, self._config.dtype)
        return torch.from_numpy(values.copy()).reshape(self._shape(values.size))

    def _shape(self, count: int) -> tuple[int, ...]:
        """Return the shape of a latent that is stored as so many bare values."""
        if self._config.shape is not None:
            return self._config.shape
        side = SIZED.fullmatch(self._latent)
        if side is None:
            raise ValueError(
                f"the column {self._latent} holds bare bytes; give source.with.shape, such as"
                " [4,32,32]"
            )
        size = int(side[1]) // 8
        return (count // size**2, size, size)


def _read_index(file: Path) -> list[dict[str, Any]]:
    """Return the shards that index.json lists.

    Raises:
        SourceError: it is missing, damaged or of another version, or shards are compressed.
    """
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        shards = [shard for shard in said["shards"] if shard["samples"]]
        odd = [shard for shard in shards if shard["format"] != "mds"]
        is_other = said["version"] != 2 or bool(odd) or not shards
    except FileNotFoundError as error:
        raise SourceError(
            f"source mds: no {INDEX} in {file.parent}; expected the folder that MDSWriter wrote"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file}: expected what MDSWriter writes: {error!r}") from error
    if is_other:
        raise SourceError(f"{file}: expected MDS, version 2, with samples")
    packed = [
        shard["raw_data"]["basename"]
        for shard in shards
        if shard.get("compression") and not (file.parent / shard["raw_data"]["basename"]).is_file()
    ]
    if packed:
        raise SourceError(
            f"{file.parent}: {packed[0]} is compressed ({shards[0]['compression']}); unpack the"
            " shards first, with StreamingDataset or the program of that compression"
        )
    return shards


def _latent_column(columns: dict[str, str], wanted: str | None, folder: Path) -> str:
    """Return the column of the latents.

    Raises:
        SourceError: it isn't clear which, or there is none.
    """
    arrays = [name for name, encoding in columns.items() if encoding.startswith("ndarray")]
    candidates = [wanted] if wanted is not None else [*USUAL, *(arrays if len(arrays) == 1 else ())]
    name = next((name for name in candidates if name in columns), None)
    if name is None:
        raise SourceError(
            f"source mds: which column of {folder} holds latents isn't clear: {columns}; name it"
            " with --set source.with.latent=COLUMN"
        )
    if columns[name] != "bytes" and name not in arrays:
        raise SourceError(f"source mds: the column {name} is {columns[name]}, no array or bytes")
    return name


def _decode_array(content: bytes, encoding: str) -> Tensor:
    """Return the array of a column `ndarray`, `ndarray:DTYPE` or `ndarray:DTYPE:SHAPE`.

    What the encoding leaves open stands before the values: the dtype's number, the number of axes
    with the width of their sizes, and the sizes.
    """
    parts = encoding.split(":")
    if len(parts) != 3:
        return _decode_described(content, parts[1] if len(parts) == 2 else None)
    shape = tuple(int(size) for size in parts[2].split(","))
    values = np.frombuffer(content, parts[1])
    if values.size != math.prod(shape):
        raise ValueError(f"{values.size} values, expected {math.prod(shape)} of {encoding}")
    return torch.from_numpy(values.reshape(shape).copy())


def _decode_described(content: bytes, dtype: str | None) -> Tensor:
    """Return an array whose shape, and dtype if None, stand before its values.

    A dtype's number is its bits, and 0, 1 or 2 for unsigned, int or float.
    """
    place = 0
    if dtype is None:
        bits, kind = divmod(content[0], 8)
        dtype, place = f"{('uint', 'int', 'float')[kind]}{8 * bits}", 1
    num_axes, width = divmod(content[place], 4)
    sizes = f"uint{8 << width}"
    shape = np.frombuffer(content, sizes, num_axes, place + 1)
    values = np.frombuffer(content, dtype, offset=place + 1 + shape.nbytes)
    return torch.from_numpy(values.reshape(shape.tolist()).copy())


build = MdsCache

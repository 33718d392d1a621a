"""The format of a unit's file: safetensors with tensors that start on 4,096-byte boundaries, so
that a row touches as few pages as possible.

Any safetensors reader opens it. The gaps between tensors are themselves tensors named "_pad/<n>",
because the format allows no holes. The header is padded with spaces. Format:
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from latentkit.errors import StoreError

ALIGNMENT = 4096
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""

NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # numpy has no bfloat16; the bits travel as they are
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "I8": np.int8,
}

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}

OFFSETS = ".offsets"
"""Suffix of the name of the tensor with another tensor's offsets: (rows + 1,) int64, in positions.
"""

LATENTS = ("moments", "latent")
"""Tensors that are measured and can be quantized; indices are neither."""

LEDGER_COLUMNS = {
    "position": pa.int64(),
    "view": pa.string(),
    "content": pa.string(),
    "status": pa.string(),
    "reason": pa.string(),
    "bucket": pa.string(),
    "row": pa.int64(),
    "geometry": pa.string(),
    "stamp": pa.string(),
}
STREAM_COLUMNS = {"key": pa.string(), "attributes": pa.string()}
"""Further ledger columns of a stream, whose plan doesn't list samples."""


def unit_name(name: str) -> str:
    """Return the path of a unit in the dataset's folder."""
    return f"units/{name}.safetensors"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's position in a file: `start` is in bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class UnitHeader:
    """The parsed header of a unit: tensors by name, metadata, and the sha256 of the header's
    bytes.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]
    sha256: str
    data_start: int

    @property
    def file_bytes(self) -> int:
        """Return the size of the unit's file. `read_header` checks it."""
        return self.data_start + sum(tensor.num_bytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose bytes come in pieces. The pieces together have exactly the bytes of dtype and
    shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Iterable[bytes | memoryview]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def write_unit(
    file: BinaryIO, tensors: Sequence[TensorToWrite], metadata: Mapping[str, str]
) -> None:
    """Write one unit into an empty seekable file. The sha256 of the data is added to the
    metadata.
    """
    entries, data_bytes = _lay_out(tensors)
    header = _header_bytes(entries, {**metadata, "sha256": "0" * 64})
    file.seek(len(header))
    digest = hashlib.sha256()
    for tensor in tensors:
        start = file.tell() - len(header)
        for chunk in tensor.chunks:
            digest.update(chunk)
            file.write(chunk)
        end = start + tensor.num_bytes
        if file.tell() - len(header) != end:
            raise ValueError(
                f"tensor {tensor.name} gave {file.tell() - len(header) - start} bytes, expected"
                f" {tensor.num_bytes}"
            )
        padding = b"\0" * (_aligned(end) - end)
        digest.update(padding)
        file.write(padding)
    if file.tell() - len(header) != data_bytes:
        raise ValueError("the unit's data has another size than its layout")
    file.seek(0)
    file.write(_header_bytes(entries, {**metadata, "sha256": digest.hexdigest()}))


def _lay_out(tensors: Sequence[TensorToWrite]) -> tuple[dict[str, object], int]:
    """Return header entries by name, including padding, and the number of data bytes."""
    entries: dict[str, object] = {}
    offset = 0
    for number, tensor in enumerate(tensors):
        end = offset + tensor.num_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = _aligned(end)
        if offset > end:
            entries[f"_pad/{number}"] = {
                "dtype": "U8",
                "shape": [offset - end],
                "data_offsets": [end, offset],
            }
    return entries, offset


def _header_bytes(entries: Mapping[str, object], metadata: Mapping[str, str]) -> bytes:
    """Return the header, padded to the alignment."""
    text = json.dumps(
        {"__metadata__": dict(metadata), **entries}, separators=(",", ":"), ensure_ascii=True
    ).encode()
    text = text.ljust(_aligned(len(text) + 8) - 8)
    return len(text).to_bytes(8, "little") + text


def _aligned(offset: int) -> int:
    """Return the next aligned offset."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def read_header(file: BinaryIO, size: int, name: str) -> UnitHeader:
    """Read the header of a unit of `size` bytes; `name` is for messages.

    Raises:
        StoreError: the file isn't a unit, is of an unknown version, or is damaged.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise StoreError(
            f"{name}: not a safetensors file (header of {length} bytes in a file of {size})"
        )
    text = file.read(length)
    try:
        parsed = json.loads(text)
        metadata = parsed.pop("__metadata__")
        tensors = {key: _stored(entry, 8 + length) for key, entry in parsed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{name}: the safetensors header is damaged ({type(error).__name__})"
        ) from error
    _check_metadata(metadata, name)
    _check_extent(tensors, 8 + length, size, name)
    return UnitHeader(tensors, metadata, hashlib.sha256(prefix + text).hexdigest(), 8 + length)


def _stored(entry: Mapping[str, Any], data_start: int) -> StoredTensor:
    """Return a tensor's position from its header entry."""
    shape: list[int] = entry["shape"]
    start, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)):
        raise ValueError("negative or fractional size")
    stored = StoredTensor(entry["dtype"], tuple(shape), data_start + start)
    if stored.num_bytes != end - start:
        raise ValueError("shape and offsets differ")
    return stored


def _check_metadata(metadata: object, name: str) -> None:
    """Check that the metadata is a unit's, of a known version."""
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise StoreError(f"{name}: the safetensors header has no text metadata")
    version = metadata.get("version")
    if metadata.get("format") != "latentkit-unit" or version is None:
        raise StoreError(f"{name}: a safetensors file, but not a unit of a latent dataset")
    if version != str(FORMAT_VERSION):
        raise StoreError(
            f"{name}: unit of format version {version}, but this program reads version"
            f" {FORMAT_VERSION}. Update latentkit"
        )


def _check_extent(
    tensors: Mapping[str, StoredTensor], data_start: int, size: int, name: str
) -> None:
    """Check that the tensors fill the file exactly."""
    place = data_start
    for key, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].num_bytes)):
        if tensor.start != place:
            raise StoreError(
                f"{name}: tensor {key!r} starts at byte {tensor.start}, expected {place}"
            )
        place += tensor.num_bytes
    if place != size:
        raise StoreError(
            f"{name}: {size} bytes long, but its header describes {place}; truncated or overwritten"
        )

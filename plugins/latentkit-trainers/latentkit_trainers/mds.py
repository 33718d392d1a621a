"""Exporter `mds`: shards for MosaicML streaming (its `StreamingDataset`), and for two trainers that
read such shards by names of columns.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.errors import StoreError
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of
from latentkit_trainers.pictures import cut_picture
from latentkit_trainers.plugin import MdsConfig

SIZES = ((256, 256), (512, 512))
"""Whose columns the two trainers know by name."""

LARGEST_SHARD = 2**32 - 1
"""Bytes; offsets in a shard are 32 bits wide."""

Column = tuple[str, Callable[[ExportItem], bytes]]
"""The encoding, by the library's name, and what gives a row's bytes."""


class MdsExporter:
    """shard.00000.mds and so on, with index.json; each view of a sample is a sample.

    The format is written here and not by the library, which excludes current versions of NumPy and
    transformers, and whose writer makes one shard after the other.
    """

    def __init__(self, config: MdsConfig) -> None:
        self._config = config
        self.closing_suffix = ".yaml" if config.preset else ".py"
        self.items_per_part = config.samples_per_shard
        if config.preset is None:
            self.needs = ExportNeeds(per="row")
            return
        is_mosaic = config.preset == "mosaicml"
        self.needs = ExportNeeds(
            per="row",
            axes="CHW",
            channels=4 if is_mosaic else None,
            downscale=8,
            normalization=scales.SD if is_mosaic else None,
            one_size=True,
            sizes=SIZES,
            text=True,
            text_one_length=True,
            media=is_mosaic,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a shard; returns its entry of index.json, and the shape of a text embedding.

        Raises:
            StoreError: the shard would be larger than the format can hold.
        """
        items = iter(items)
        first = next(items)
        name = f"shard.{first.number // self.items_per_part:05d}.mds"
        columns = self._columns(export, first.row.mask is not None)
        rows = [encode_row(columns, item) for item in itertools.chain([first], items)]
        config = describe(columns)
        content = encode_shard(rows, json.dumps(config, sort_keys=True).encode())
        if len(content) > LARGEST_SHARD:
            raise StoreError(
                f"{name} would have {len(content)} bytes, and the format holds {LARGEST_SHARD};"
                f" lower samples_per_shard={self.items_per_part}"
            )
        (folder / name).write_bytes(content)
        raw = {"basename": name, "bytes": len(content), "hashes": {}}
        entry = {**config, "raw_data": raw, "samples": len(rows), "zip_data": None}
        return [[entry, None if first.text is None else first.text["latent"].T.shape]]

    def _columns(self, export: Export, has_mask: bool) -> dict[str, Column]:
        caption = self._config.caption
        if self._config.preset is None:
            return generic_columns(export, self._config.dtype, has_mask)
        columns: dict[str, Column] = {
            f"latents_{export.buckets[0].split('x')[0]}": ("bytes", half_latent),
            "caption_latents": ("bytes", half_text),
            "caption": ("str", lambda item: caption_of(item, caption).encode()),
        }
        if self._config.preset == "mosaicml":
            columns["jpg"] = ("bytes", jpeg)
        return columns

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write index.json; returns the lines that read the export."""
        shards, shapes = zip(*records, strict=True)
        text = json.dumps({"version": 2, "shards": shards}, sort_keys=True)
        (folder / "index.json").write_text(text, encoding="utf-8")
        path = json.dumps(str(export.folder), ensure_ascii=False)
        if self._config.preset is None:
            return (
                "from streaming import StreamingDataset\n\n"
                f"data = StreamingDataset(local={path}, batch_size=1)"
            )
        size = export.buckets[0].split("x")[0]
        lines = ["dataset:", f"  image_size: {size}", "  train:"]
        if self._config.preset == "mosaicml":
            return "\n".join([*lines, f"    local: {path}"])
        lines += [f"    datadir: [{path}]", f"    cap_seq_size: {shapes[0][0]}"]
        return "\n".join([*lines, f"    cap_emb_dim: {shapes[0][1]}"])


def generic_columns(export: Export, dtype: str, has_mask: bool) -> dict[str, Column]:
    """Latent (or indices), its mask, key, view and all attributes; texts as "str", missing ones
    empty, other values as "json".

    Raises:
        StoreError: an attribute has the name of another column.
    """
    columns: dict[str, Column] = {
        "key": ("str", lambda item: item.key.encode()),
        "view": ("str", lambda item: item.row.view.encode()),
    }
    if export.layout.kind == "quantised":
        columns["indices"] = ("ndarray:int64", lambda item: _array(_indices(item)))
    else:
        columns["latent"] = (f"ndarray:{dtype}", lambda item: _array(_latent(item, dtype)))
    if has_mask:
        columns["latent_mask"] = ("ndarray:uint8", lambda item: _array(_mask(item)))
    for name, kind in export.attribute_types.items():
        if name in columns:
            raise StoreError(
                f"rows have an attribute {name!r}, which is the name of another column; rename it"
                " in the source"
            )
        is_text = pa.types.is_string(kind)
        columns[name] = ("str", _text_of(name)) if is_text else ("json", _json_of(name))
    return columns


def _latent(item: ExportItem, dtype: str) -> np.ndarray:
    values: np.ndarray = item.row.latent.numpy()
    return values.astype(dtype)


def _indices(item: ExportItem) -> np.ndarray:
    values: np.ndarray = item.row.stored["indices"].numpy()
    return values.astype(np.int64)


def _mask(item: ExportItem) -> np.ndarray:
    assert item.row.mask is not None
    values: np.ndarray = item.row.mask.numpy()
    return values.astype(np.uint8)


def _text_of(name: str) -> Callable[[ExportItem], bytes]:
    return lambda item: (item.attributes.get(name) or "").encode()


def _json_of(name: str) -> Callable[[ExportItem], bytes]:
    return lambda item: json.dumps(item.attributes.get(name)).encode()


def half_latent(item: ExportItem) -> bytes:
    """A latent's values, normalized, float16."""
    return _latent(item, "float16").tobytes()


def half_text(item: ExportItem) -> bytes:
    """A text embedding's values, (L, C) float16."""
    assert item.text is not None
    return np.ascontiguousarray(item.text["latent"].T.numpy().astype(np.float16)).tobytes()


def jpeg(item: ExportItem) -> bytes:
    """Return JPEG bytes of the image as it was encoded."""
    file = io.BytesIO()
    cut_picture(item.media, item.row).save(file, "JPEG", quality=95)
    return file.getvalue()


def _array(values: Any) -> bytes:
    """An array with its shape before it: number of axes (and 2, for sizes of 32 bits), sizes,
    values.
    """
    array = np.ascontiguousarray(values)
    shape = np.array(array.shape, np.uint32)
    return bytes([array.ndim << 2 | 2]) + shape.tobytes() + array.tobytes()


def describe(columns: dict[str, Column]) -> dict[str, Any]:
    """What the library must know of a shard."""
    names = sorted(columns)
    return {
        "column_encodings": [columns[name][0] for name in names],
        "column_names": names,
        "column_sizes": [None] * len(names),
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": None,
        "version": 2,
    }


def encode_row(columns: dict[str, Column], item: ExportItem) -> bytes:
    """The sizes of a row's columns, then their bytes."""
    parts = [columns[name][1](item) for name in sorted(columns)]
    return np.array([len(part) for part in parts], np.uint32).tobytes() + b"".join(parts)


def encode_shard(rows: list[bytes], config: bytes) -> bytes:
    """Number of rows, where each begins and the last ends, the columns, the rows."""
    before = 4 * (len(rows) + 2) + len(config)
    offsets = before + np.cumsum([0, *map(len, rows)], dtype=np.int64)
    head = np.array([len(rows)], np.uint32).tobytes() + offsets.astype(np.uint32).tobytes()
    return b"".join([head, config, *rows])


build = MdsExporter

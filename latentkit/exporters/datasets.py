"""Exporter `datasets`: parquet files that `load_dataset` of the library datasets reads."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Array2D, Array3D, Array4D, Array5D, Features, List, Value
from torch import Tensor

from latentkit.contracts import Export, ExportItem
from latentkit.errors import StoreError
from latentkit.exporters.options import DatasetsConfig
from latentkit.exporters.rows import labels_of, needs_of, tensors_of, write_description

ROWS_PER_GROUP = 128
"""Of a file, that are in memory at once."""

ARRAYS = {2: Array2D, 3: Array3D, 4: Array4D, 5: Array5D}
"""By number of axes."""

Row = tuple[dict[str, Any], dict[str, Tensor]]
"""Labels and tensors."""


class DatasetsExporter:
    """BUCKET/00000000.parquet and so on: key, view, attributes, and tensors of fixed shape (as
    `Array3D`), or of nested lists where rows have lengths of their own.

    README.md makes each bucket a configuration, since a column's tensors have one shape.
    """

    closing_suffix = ".py"

    def __init__(self, config: DatasetsConfig) -> None:
        self._config = config
        self.needs = needs_of(config)
        self.items_per_part = config.rows_per_file

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[str]:
        """Write a file per bucket; returns the buckets.

        Raises:
            StoreError: an attribute has the name of a tensor.
        """
        with _Files(folder, export) as files:
            for item in items:
                tensors = tensors_of(item, self._config.values, self._config.dtype)
                bucket = "ragged" if export.layout.ragged_axis else item.row.bucket
                files.add(bucket, item.number // self.items_per_part, (labels_of(item), tensors))
        return files.buckets

    def finish(self, records: Iterable[str], folder: Path, export: Export) -> str:
        """Write README.md and latents.json; returns the lines that load the export."""
        buckets = sorted(set(records))
        names = ["default"] if len(buckets) == 1 else buckets
        lines = ["---", "configs:"]
        for name, bucket in zip(names, buckets, strict=True):
            lines += [f'- config_name: "{name}"', f'  data_files: "{bucket}/*.parquet"']
        (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
        write_description(export, self._config, folder)
        path = json.dumps(str(export.folder), ensure_ascii=False)
        loaded = [
            f'load_dataset({path}{choice}, split="train").with_format("torch")'
            for choice in ([""] if len(buckets) == 1 else [f', "{name}"' for name in names])
        ]
        start = "from datasets import load_dataset\n"
        if len(loaded) == 1:
            return f"{start}\ndata = {loaded[0]}"
        rows = (f'    "{name}": {line},\n' for name, line in zip(names, loaded, strict=True))
        return f"{start}\ndata = {{\n{''.join(rows)}}}"


class _Files:
    """The files of one part, by bucket; each is written in groups of rows."""

    def __init__(self, folder: Path, export: Export) -> None:
        self._folder, self._export = folder, export
        self._waiting: dict[str, list[Row]] = defaultdict(list)
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._part = 0

    @property
    def buckets(self) -> list[str]:
        return sorted(self._waiting)

    def add(self, bucket: str, part: int, row: Row) -> None:
        self._part = part
        self._waiting[bucket].append(row)
        if len(self._waiting[bucket]) == ROWS_PER_GROUP:
            self._write_group(bucket)

    def _write_group(self, bucket: str) -> None:
        table = _table(self._waiting[bucket], self._export)
        self._waiting[bucket] = []
        if bucket not in self._writers:
            file = self._folder / bucket / f"{self._part:08d}.parquet"
            file.parent.mkdir(exist_ok=True)
            self._writers[bucket] = pq.ParquetWriter(
                file, table.schema, compression="none", use_dictionary=False
            )
        self._writers[bucket].write_table(table)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *error: object) -> None:
        for bucket, rows in self._waiting.items():
            if rows and error[0] is None:
                self._write_group(bucket)
        for writer in self._writers.values():
            writer.close()


def _table(rows: list[Row], export: Export) -> pa.Table:
    """Rows as a table whose schema says to the library datasets what its columns are."""
    types = {"key": pa.string(), **export.attribute_types, "view": pa.string()}
    features = Features.from_arrow_schema(pa.schema(types))
    columns: dict[str, pa.Array] = {
        name: pa.array([labels.get(name) for labels, _ in rows], kind)
        for name, kind in types.items()
    }
    for name in rows[0][1]:
        if name in columns:
            raise StoreError(
                f"rows have an attribute {name!r}, which is the name of a column of tensors;"
                " rename it in the source"
            )
        tensors = [tensors[name] for _, tensors in rows]
        is_ragged = export.layout.ragged_axis is not None or tensors[0].ndim == 1
        columns[name], features[name] = (_list_column if is_ragged else _array_column)(tensors)
    return pa.table(columns, features.arrow_schema)


def _list_column(tensors: list[Tensor]) -> tuple[pa.Array, Any]:
    """Nested lists, and what they are."""
    feature: Any = Value(_dtype(tensors[0]))
    for _ in range(tensors[0].ndim):
        feature = List(feature)
    kind = Features({"": feature}).arrow_schema.field("").type
    return pa.array([tensor.tolist() for tensor in tensors], kind), feature


def _array_column(tensors: list[Tensor]) -> tuple[pa.Array, Any]:
    """Tensors of one shape, and what they are."""
    stack = torch.stack(tensors)
    feature = ARRAYS[stack.ndim - 1](tuple(stack.shape[1:]), _dtype(stack))
    values = stack.float() if stack.dtype == torch.bfloat16 else stack
    column = pa.array(values.numpy().reshape(-1))
    for axis in range(stack.ndim - 1, 0, -1):
        size, count = stack.shape[axis], math.prod(stack.shape[:axis])
        offsets = pa.array(np.arange(count + 1, dtype=np.int32) * size)
        column = pa.ListArray.from_arrays(offsets, column)
    return pa.ExtensionArray.from_storage(feature(), column), feature


def _dtype(tensor: Tensor) -> str:
    """The type of a tensor's values; of bfloat16, which Arrow hasn't, float32."""
    return str(tensor.dtype).removeprefix("torch.").replace("bfloat16", "float32")

"""Latent datasets written by hand, byte for byte as the format says, so that a test can also write
what no encoder would.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latentkit.executors.local import LocalExecutor
from latentkit.plugins import discover
from latentkit.store.format import TensorToWrite, read_header, write_unit

CODES = {
    "float32": "F32",
    "float16": "F16",
    "int8": "I8",
    "int64": "I64",
    "int16": "I16",
    "uint8": "U8",
}

LAYOUT = {
    "name": "latent",
    "kind": "gaussian",
    "axes": "CHW",
    "channels": 2,
    "downscale": 8,
    "ragged_axis": None,
}

Arrays = Mapping[str, npt.NDArray[Any]]


def write_unit_file(path: Path, tensors: Arrays) -> dict[str, Any]:
    """A unit's file, and its entry of dataset.json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [
        TensorToWrite(name, CODES[str(array.dtype)], array.shape, [array.tobytes()])
        for name, array in tensors.items()
    ]
    with open(path, "w+b") as file:
        write_unit(
            file,
            entries,
            {
                "format": "latentkit-unit",
                "version": "1",
                "fingerprint": "0" * 64,
                "statistics": "null",
            },
        )
        file.flush()
        size = path.stat().st_size
        file.seek(0)
        header = read_header(file, size, str(path))
    return {"bytes": size, "rows": 0, "header_sha256": header.sha256}


def _column(values: list[Any]) -> pa.Array:
    """Bytes stand for text that needn't be UTF-8."""
    if not any(isinstance(value, bytes) for value in values):
        return pa.array(values)
    return pa.array(
        [value.encode() if isinstance(value, str) else value for value in values], pa.binary()
    ).view(pa.string())


def write_by_hand(
    path: Path,
    units: Mapping[str, Arrays],
    rows: Sequence[tuple[Any, ...]],
    dtype: str = "float16",
    **changes: Any,
) -> Path:
    """A finished dataset: `rows` are (key, view, unit, bucket, row in unit); `changes` to
    dataset.json.
    """
    entries = {
        name: write_unit_file(path / "units" / f"{name}.safetensors", tensors)
        for name, tensors in units.items()
    }
    columns = [_column(list(column)) for column in zip(*rows, strict=True)]
    table = pa.table(dict(zip(("key", "view", "unit", "bucket", "row"), columns, strict=True)))
    table = table.append_column("status", pa.array(["ok"] * len(rows)))
    table = table.append_column(
        "attributes", pa.array([{"text": f"caption {number}"} for number in range(len(rows))])
    )
    (path / "index").mkdir(parents=True)
    pq.write_table(table, path / "index" / "000.parquet")
    index = hashlib.sha256((path / "index" / "000.parquet").read_bytes()).hexdigest()
    document = {
        "format": "latentkit",
        "version": 1,
        "fingerprint": "0" * 64,
        "parts": {},
        "store": "moments",
        "dtype": dtype,
        "views": sorted({row[1] for row in rows}),
        "layout": LAYOUT,
        "normalization": {"shift": 0.25, "scale": 0.5, "fold": {}},
        "statistics": None,
        "source": {},
        "index": {"name": "index/000.parquet", "sha256": index},
        "plans": {"plans/000.parquet": "0" * 64},
        "units": entries,
        **changes,
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (path / "dataset.json").write_text(
        json.dumps({**document, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    )
    return path


@pytest.fixture(scope="session")
def write_dataset() -> Callable[..., Path]:
    """`write_by_hand`."""
    return write_by_hand


@pytest.fixture(scope="session")
def random_dataset() -> Callable[..., Path]:
    """A dataset of `unit_sizes` rows of random moments, buckets taking turns row by row; keys are
    numbers in the order of rows.
    """

    def write(
        path: Path, unit_sizes: Sequence[int], buckets: Mapping[str, tuple[int, int]]
    ) -> Path:
        generator = np.random.default_rng(0)
        units, rows = {}, []
        names = list(buckets)
        for number, size in enumerate(unit_sizes):
            name = f"000-{number:06d}"
            counts = dict.fromkeys(names, 0)
            for place in range(size):
                bucket = names[place % len(names)]
                rows.append((f"{len(rows):05d}", "plain", name, bucket, counts[bucket]))
                counts[bucket] += 1
            units[name] = {
                f"{bucket}/moments": (
                    generator.normal(size=(count, 4, *buckets[bucket])).astype(np.float16)
                )
                for bucket, count in counts.items()
                if count
            }
        return write_by_hand(path, units, rows)

    return write


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the plugin `acme-waves`, installed here and in the processes that a test
    starts.
    """
    folder = str(Path(__file__).with_name("waves"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
    )
    discover.cache_clear()
    sys.modules.pop(
        "acme_waves", None
    )  # classes of its own for each test: what one lacks of a protocol is remembered for a class
    yield importlib.import_module("acme_waves")
    discover.cache_clear()


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[None]]:
    """A context whose run ends as soon as it has planned its units, as by Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def interrupted() -> Iterator[None]:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(LocalExecutor, "run", interrupt)
            yield

    return interrupted

"""A unit's file is a safetensors file like any other, aligned, and nothing damaged is read as if it
were whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from latentkit.errors import StoreError
from latentkit.store.format import ALIGNMENT, TensorToWrite, UnitHeader, read_header, write_unit

METADATA = {"format": "latentkit-unit", "version": "1", "fingerprint": "f"}


def unit_bytes(array: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    file = io.BytesIO()
    tensors = [
        TensorToWrite("8x8/latent", "F32", array.shape, [array[:1].tobytes(), array[1:].tobytes()]),
        TensorToWrite("rows", "U8", (5,), [b"hello"]),
    ]
    write_unit(file, tensors, METADATA)
    return file.getvalue()


def read(content: bytes) -> UnitHeader:
    return read_header(io.BytesIO(content), len(content), "unit")


@pytest.fixture
def array() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.arange(3 * 2 * 5, dtype=np.float32).reshape(3, 2, 5)


def test_safetensors_reads_a_unit(
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    (tmp_path / "unit.safetensors").write_bytes(unit_bytes(array))
    with safe_open(tmp_path / "unit.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("8x8/latent"), array)
        assert file.get_tensor("rows").tobytes() == b"hello"
        assert file.metadata()["fingerprint"] == "f"


def test_tensors_start_on_page_boundaries(
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    header = read(unit_bytes(array))
    assert [
        tensor.start % ALIGNMENT
        for name, tensor in header.tensors.items()
        if not name.startswith("_pad")
    ] == [0, 0]


def test_metadata_states_the_hash_of_the_data(
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> None:
    content = unit_bytes(array)
    header = read(content)
    assert header.metadata["sha256"] == hashlib.sha256(content[header.data_start :]).hexdigest()
    assert header.sha256 == hashlib.sha256(content[: header.data_start]).hexdigest()


def test_wrong_number_of_bytes_is_refused_when_writing() -> None:
    with pytest.raises(ValueError, match="gave 3 bytes, expected 4"):
        write_unit(io.BytesIO(), [TensorToWrite("x", "F32", (1,), [b"abc"])], METADATA)


@pytest.mark.parametrize("length", [0, 4, 8, 100, 4096, 5000])
def test_truncated_unit_is_refused(
    array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], length: int
) -> None:
    with pytest.raises(StoreError, match="unit: "):
        read(unit_bytes(array)[:length])


def with_header(change: object) -> bytes:
    text = json.dumps(change).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 16


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "damaged"),
        ({"a": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}, "damaged"),
        (
            {
                "__metadata__": METADATA,
                "a": {"dtype": "U8", "shape": [17], "data_offsets": [0, 16]},
            },
            "damaged",
        ),
        (
            {
                "__metadata__": METADATA,
                "a": {"dtype": "U8", "shape": [-16], "data_offsets": [0, -16]},
            },
            "damaged",
        ),
        (
            {
                "__metadata__": METADATA,
                "a": {"dtype": "X9", "shape": [16], "data_offsets": [0, 16]},
            },
            "damaged",
        ),
        (
            {"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}},
            "starts at byte",
        ),
        (
            {"__metadata__": METADATA, "a": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}},
            "16 bytes|long",
        ),
        ({"__metadata__": {**METADATA, "version": "2"}}, "format version 2"),
        ({"__metadata__": {"format": "pt"}}, "not a unit"),
        ({"__metadata__": {"format": 1}}, "no text metadata"),
    ],
)
def test_hostile_header_is_a_store_error(header: object, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        read(with_header(header))


def test_huge_header_length_allocates_nothing() -> None:
    with pytest.raises(StoreError, match="not a safetensors file"):
        read((2**63).to_bytes(8, "little") + b"x" * 100)

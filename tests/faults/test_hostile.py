"""Hostile files: a `StoreError`, a finding, or the unchanged right answer; never a crash, a hang,
or a huge allocation.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from verified import verify_dataset

import latentkit as lk
from latentkit.errors import StoreError
from latentkit.store.columns import read_parquet
from latentkit.store.dataset_json import read_dataset
from latentkit.store.folder import canonical_json
from latentkit.store.format import read_header
from latentkit.store.index import parse_rows
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import read_plan
from latentkit.tasks.preview import preview_dataset
from latentkit.upkeep.inspect_dataset import describe, inspect_dataset

MUTATIONS = int(os.environ.get("LATENTKIT_MUTATIONS", "4000"))
PROGRAM = Path(__file__).with_name("hostile_cases.py")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
FAST = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def test_thousands_of_hostile_files_are_refused_or_found(tmp_path: Path) -> None:
    """Two processes, half of the cases each: whatever happens in one can't take the tests with it.
    """
    begun = []
    for seed in range(2):
        line = [
            sys.executable,
            str(PROGRAM),
            str(tmp_path / str(seed)),
            str(seed),
            str(MUTATIONS // 2),
        ]
        begun.append(
            subprocess.Popen(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        )
    for process in begun:
        printed = process.communicate(timeout=280)[0]
        assert process.returncode == 0, printed[-5000:]
        assert f"{MUTATIONS // 2} cases, 0 wrong" in printed


@FAST
@given(content=st.binary(max_size=200), length=st.sampled_from([None, 0, 2**31, 2**63, 2**64 - 1]))
def test_any_bytes_as_a_unit_are_refused(content: bytes, length: int | None) -> None:
    whole = content if length is None else length.to_bytes(8, "little") + content
    with pytest.raises(StoreError):
        read_header(io.BytesIO(whole), len(whole), "unit")


@FAST
@given(header=JSON, entry=JSON)
def test_any_json_as_a_header_is_refused(header: Any, entry: Any) -> None:
    metadata = {"format": "latentkit-unit", "version": "1"}
    for value in (
        header,
        {"__metadata__": header},
        *({"__metadata__": metadata, "x": one} for one in (entry, {"shape": entry})),
    ):
        text = json.dumps(value).encode()
        whole = len(text).to_bytes(8, "little") + text + b"some data"
        with pytest.raises(StoreError):
            read_header(io.BytesIO(whole), len(whole), "unit")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]},
        {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [2**63, 2**63 + 16]},
        {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]},
        {"dtype": "F32", "shape": [-4], "data_offsets": [0, -16]},
        {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F4", "shape": [4], "data_offsets": [0, 16]},
        {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]},
    ],
)
def test_header_that_lies_about_sizes_is_refused(entry: dict[str, Any]) -> None:
    metadata = {"format": "latentkit-unit", "version": "1"}
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    for tensors in ({"a": entry}, {"a": good, "b": entry}, {"a": good, "b": good}):
        text = json.dumps({"__metadata__": metadata, **tensors}).encode()
        whole = len(text).to_bytes(8, "little") + text + bytes(16)
        with pytest.raises(StoreError):
            read_header(io.BytesIO(whole), len(whole), "unit")


@FAST
@given(content=st.binary(max_size=300))
def test_any_bytes_as_tables_are_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        parse_rows(content, "unit")
    with pytest.raises((pa.ArrowException, OSError)):
        read_parquet(b"PAR1" + content + b"PAR1")
    (tmp_path / "plans").mkdir(exist_ok=True)
    (tmp_path / "plans" / "000.parquet").write_bytes(
        b"PAR1" + content + len(content).to_bytes(4, "little") + b"PAR1"
    )
    with pytest.raises(StoreError):
        read_plan(LocalFolder(tmp_path), 0)


@FAST
@given(
    document=st.dictionaries(
        st.sampled_from(["format", "version", "units", "index", "plans", "layout"]) | st.text(),
        JSON,
    ),
    whole=JSON,
)
def test_any_json_as_dataset_json_is_refused(
    document: dict[str, Any], whole: Any, tmp_path: Path
) -> None:
    sealed = {**document, "format": "latentkit", "version": 1}
    try:
        sealed["sha256"] = hashlib.sha256(
            canonical_json({key: sealed[key] for key in sealed if key != "sha256"}).encode()
        ).hexdigest()
    except (ValueError, UnicodeEncodeError):
        sealed["sha256"] = ""
    for value in (whole, document, sealed):
        (tmp_path / "dataset.json").write_text(json.dumps(value))
        with pytest.raises(StoreError):
            read_dataset(LocalFolder(tmp_path))
        with pytest.raises(StoreError):
            lk.open(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 100_000, '{"a":' * 50_000, "\xed\xa0\x80"])
def test_endless_nesting_and_numbers_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(StoreError):
        read_dataset(LocalFolder(tmp_path))
    whole = len(text.encode()).to_bytes(8, "little") + text.encode()
    with pytest.raises(StoreError):
        read_header(io.BytesIO(whole), len(whole), "unit")


# ---------------------------------------------------------------- keys


def test_hostile_file_names_are_kept_as_data(
    write_photos: Callable[..., Path], kl_folder: Path, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos", 1)
    raw = os.fsencode(photos)
    names = [
        b"caf\xe9\xff.png",
        b"\x1b[2Jclear.png",
        b"new\nline.png",
        b"<script>alert(1)<.png",
        b"%2e%2e%2fx.png",
        b"x" * 240 + b".png",
    ]
    for name in names:
        with open(raw + b"/" + name, "wb") as file:
            file.write((photos / "000.png").read_bytes())
    output = tmp_path / "out"
    lk.encode(
        photos,
        output,
        encoder=kl_folder,
        size=32,
        overrides={"batch_size": 4, "threads": 1, "preview": 0},
    )
    kept = {name.decode("utf-8", "backslashreplace") for name in names} | {"000.png"}
    assert set(lk.open(output).keys) == kept
    assert verify_dataset(output).damage == ()
    assert inspect_dataset(str(output), with_ledger=True)["samples"] == len(kept)
    assert describe(inspect_dataset(str(output)))
    preview_dataset(str(output), tmp_path / "look.png", 8)
    with Image.open(tmp_path / "look.png") as image:
        assert image.height > 32


def test_keys_that_look_like_paths_are_never_paths(
    kl_folder: Path, write_photos: Callable[..., Path], tmp_path: Path
) -> None:
    picture = (write_photos(tmp_path / "photos", 1) / "000.png").read_bytes()
    keys = [
        "../../etc/passwd",
        "/etc/passwd",
        "nul\0byte",
        "k" * 4096,
        "..",
        "",
        "units/000-000000.safetensors",
        "\x1b[31m",
        "🙂",
    ]
    table = pa.table({"id": keys, "image": [{"bytes": picture, "path": None}] * len(keys)})
    (tmp_path / "rows").mkdir()
    pq.write_table(table, tmp_path / "rows" / "rows.parquet")
    before = {path for path in tmp_path.rglob("*") if "out" not in path.parts}
    recipe = {
        "task": "encode",
        "source": {"use": "datasets", "with": {"path": str(tmp_path / "rows"), "key": "id"}},
        "modality": {"use": "image", "with": {"size": 32}},
        "encoder": {"use": "diffusers", "with": {"model": str(kl_folder)}},
        "output": {"path": str(tmp_path / "out"), "unit_size": 4},
        "batch_size": 4,
        "threads": 1,
        "preview": 0,
    }
    data = lk.run(recipe)
    assert data.keys == keys
    assert verify_dataset(tmp_path / "out").damage == ()
    assert {path for path in tmp_path.rglob("*") if "out" not in path.parts} == before
    preview_dataset(str(tmp_path / "out"), tmp_path / "look.png", 9)

"""A unit in the making: what is stored of it, what is measured, and in which order."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from latentkit.contracts import Unit
from latentkit.store import writer as writer_module
from latentkit.store.local_folder import LocalFolder
from latentkit.store.statistics import measure_on_device
from latentkit.store.writer import NOT_FINITE, RowLabel, UnitWriter

UNIT = Unit(0, 0, 0, 10)
BUCKET = "16x16"
FILE = "units/000-000000.safetensors"


def draw_moments(count: int, seed: int = 0) -> Tensor:
    """(count, 4, 3, 5) float32: means, then logvars."""
    values = torch.randn(count, 4, 3, 5, generator=torch.Generator().manual_seed(seed))
    values[:, 2:] = values[:, 2:] * 2 - 6
    return values


def labels(positions: Sequence[int]) -> list[RowLabel]:
    return [
        RowLabel(position, "plain", geometry={"height": 16, "at": [position]})
        for position in positions
    ]


def write(
    folder: Path, batches: Sequence[Tensor], name: str = "moments", quantize: bool = False
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Tensors and metadata, as the safetensors library reads them."""
    writer, start = UnitWriter(UNIT, quantize=quantize), 0
    for batch in batches:
        writer.add(BUCKET, labels(range(start, start + len(batch))), {name: batch})
        start += len(batch)
    writer.commit(LocalFolder(folder), {}, "f")
    return read(folder)


def read(folder: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    with safe_open(folder / FILE, "pt") as file:
        keys = file.keys()
        names = [name for name in keys if not name.startswith("_pad")]
        return {name: file.get_tensor(name) for name in names}, file.metadata()


def read_rows(tensors: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger rows."""
    rows: list[dict[str, Any]] = pa.ipc.open_stream(tensors["rows"].numpy()).read_all().to_pylist()
    return rows


def round_plainly(values: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Integers and scales (N, C, 1, 1), by the definition, in float64."""
    exact = values.double().numpy()
    scale = np.abs(exact).max(axis=(2, 3), keepdims=True) / 127
    return np.round(exact / scale), scale


def test_int8_unit_holds_integers_and_a_scale_per_row_and_channel(tmp_path: Path) -> None:
    moments = draw_moments(7)
    tensors, _ = write(tmp_path, moments.chunk(3), quantize=True)
    integers, scale = round_plainly(moments)
    stored, scales = tensors[f"{BUCKET}/moments"], tensors[f"{BUCKET}/moments.scale"]
    assert (stored.dtype, scales.dtype, scales.shape) == (torch.int8, torch.float32, (7, 4))
    np.testing.assert_array_equal(stored.numpy(), integers)
    np.testing.assert_allclose(scales.numpy(), scale[:, :, 0, 0], rtol=1e-6)


def test_int8_statistics_are_of_what_a_reader_sees(tmp_path: Path) -> None:
    tensors, metadata = write(tmp_path, draw_moments(7).chunk(3), quantize=True)
    seen = (
        (
            tensors[f"{BUCKET}/moments"].float()
            * tensors[f"{BUCKET}/moments.scale"][:, :, None, None]
        )
        .double()
        .numpy()
    )
    statistics = json.loads(metadata["statistics"])
    assert statistics["count"] == 7 * 15
    np.testing.assert_allclose(statistics["mean"], seen[:, :2].mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(
        statistics["squares"], seen[:, :2].var(axis=(0, 2, 3)) * 7 * 15, rtol=1e-12
    )
    np.testing.assert_allclose(
        statistics["variance_sum"], np.exp(seen[:, 2:]).sum(axis=(0, 2, 3)), rtol=1e-12
    )


def test_int8_unit_states_its_error(tmp_path: Path) -> None:
    moments = draw_moments(7)
    tensors, metadata = write(tmp_path, moments.chunk(3), quantize=True)
    seen = (
        tensors[f"{BUCKET}/moments"].float() * tensors[f"{BUCKET}/moments.scale"][:, :, None, None]
    ).double()
    error = json.loads(metadata["quantisation"])["moments"]
    assert error["count"] == 7 * 15
    np.testing.assert_allclose(
        error["squares"], (seen - moments).square().sum((0, 2, 3)).numpy(), rtol=1e-12
    )


def test_int8_latents_have_no_posterior(tmp_path: Path) -> None:
    latents = draw_moments(5)
    tensors, metadata = write(tmp_path, [latents], "latent", quantize=True)
    np.testing.assert_array_equal(tensors[f"{BUCKET}/latent"].numpy(), round_plainly(latents)[0])
    assert len(json.loads(metadata["quantisation"])["latent"]["squares"]) == 4
    assert json.loads(metadata["statistics"])["variance_sum"] == [0.0] * 4


def test_indices_are_never_quantized(tmp_path: Path) -> None:
    indices = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    tensors, metadata = write(tmp_path, [indices], "indices", quantize=True)
    assert torch.equal(tensors[f"{BUCKET}/indices"], indices)
    assert set(tensors) == {f"{BUCKET}/indices", "rows"}
    assert "quantisation" not in metadata


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_dtypes_are_stored_as_they_come(tmp_path: Path, dtype: torch.dtype) -> None:
    moments = draw_moments(7).to(dtype)
    tensors, metadata = write(tmp_path, moments.chunk(3))
    assert torch.equal(tensors[f"{BUCKET}/moments"], moments)
    assert set(tensors) == {f"{BUCKET}/moments", "rows"}
    assert "quantisation" not in metadata


def test_rows_of_an_int8_unit_can_be_copied_into_another_bit_for_bit(tmp_path: Path) -> None:
    tensors, metadata = write(tmp_path / "first", [draw_moments(6)], quantize=True)
    names = ("moments", "moments.scale")
    writer = UnitWriter(UNIT)
    writer.add(BUCKET, labels(range(6)), {name: tensors[f"{BUCKET}/{name}"] for name in names})
    writer.commit(LocalFolder(tmp_path / "second"), {}, "f")
    copied, copied_metadata = read(tmp_path / "second")
    assert all(
        torch.equal(copied[f"{BUCKET}/{name}"], tensors[f"{BUCKET}/{name}"]) for name in names
    )
    assert copied_metadata["statistics"] == metadata["statistics"]


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_skipped_and_the_others_kept(
    tmp_path: Path, bad: float, quantize: bool
) -> None:
    moments = draw_moments(5)
    good = moments[[0, 2, 4]]
    moments[1, 0, 2, 4] = bad
    moments[3, 3, 0, 0] = bad
    writer = UnitWriter(UNIT, quantize=quantize)
    writer.add(BUCKET, labels(range(5)), {"moments": moments})
    assert (writer.num_ok, writer.num_skipped) == (3, 2)
    writer.commit(LocalFolder(tmp_path / "mixed"), {}, "f")
    tensors, metadata = read(tmp_path / "mixed")
    expected, expected_metadata = write(tmp_path / "good", [good], quantize=quantize)
    assert torch.equal(tensors[f"{BUCKET}/moments"], expected[f"{BUCKET}/moments"])
    assert metadata["statistics"] == expected_metadata["statistics"]
    rows = read_rows(tensors)
    assert [(row["status"], row["row"]) for row in rows] == [
        ("ok", 0),
        ("skipped", None),
        ("ok", 1),
        ("skipped", None),
        ("ok", 2),
    ]
    assert {row["reason"] for row in rows} == {None, NOT_FINITE}


def test_ledger_is_in_order_of_sample_and_view_whatever_came_first(tmp_path: Path) -> None:
    writer = UnitWriter(UNIT, is_stream=True)
    moments = draw_moments(2).half()
    for position in (2, 0):
        pair = [
            RowLabel(
                position, view, number, key=f"k{position}\udcff", attributes={"b": 1, "a": "é"}
            )
            for view, number in (("z", 1), ("b", 2))
        ]
        writer.add(BUCKET, pair, {"moments": moments})
    writer.skip(RowLabel(1, "z", 1, key="k1"), "unreadable \udc80")
    writer.skip(RowLabel(1, "b", 2, key="k1", geometry={"w": 3}), "unreadable")
    writer.commit(LocalFolder(tmp_path), {}, "f")
    rows = read_rows(read(tmp_path)[0])
    assert [(row["position"], row["view"]) for row in rows] == [
        (0, "z"),
        (0, "b"),
        (1, "z"),
        (1, "b"),
        (2, "z"),
        (2, "b"),
    ]
    assert [row["row"] for row in rows] == [2, 3, None, None, 0, 1]
    assert [row["bucket"] for row in rows] == [BUCKET, BUCKET, None, None, BUCKET, BUCKET]
    assert [row["key"] for row in rows[1:3]] == ["k0\\udcff", "k1"]
    assert rows[0]["attributes"] == '{"a": "\\u00e9", "b": 1}'
    assert (rows[2]["reason"], rows[2]["geometry"], rows[3]["geometry"]) == (
        "unreadable \\udc80",
        None,
        '{"w": 3}',
    )
    assert (writer.num_ok, writer.num_skipped) == (4, 2)


def test_unit_that_waited_on_disk_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = draw_moments(40).chunk(13)
    write(tmp_path / "memory", batches, quantize=True)
    monkeypatch.setattr(writer_module, "SPILL_BYTES", 100)
    monkeypatch.setattr(writer_module, "COPY_BYTES", 64)
    write(tmp_path / "disk", batches, quantize=True)
    assert (tmp_path / "disk" / FILE).read_bytes() == (tmp_path / "memory" / FILE).read_bytes()


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_others_may_read_a_unit_as_the_umask_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int
) -> None:
    monkeypatch.setattr(writer_module, "SPILL_BYTES", 1)
    before = os.umask(umask)
    try:
        write(tmp_path / "out", [draw_moments(2)])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / FILE).stat().st_mode) == 0o666 & ~umask


WAITING = """
import sys, tempfile, torch
from latentkit.contracts import Unit
from latentkit.errors import StoreError
from latentkit.store import writer
writer.SPILL_BYTES = 1
unit = writer.UnitWriter(Unit(0, 0, 0, 1))
try:
    for position in range(64):
        unit.add("16x16", [writer.RowLabel(position, "plain")], {"latent": torch.zeros(1, 4, 16, 16)})
except StoreError as error:
    print(tempfile.gettempdir(), error, sep="\\n")
"""


def test_no_room_for_latents_that_wait_names_the_folder_and_its_setting() -> None:
    full = [
        "bash",
        "-c",
        'ulimit -f 64; exec "$@"',
        "bash",
        sys.executable,
        "-c",
        WAITING,
    ]  # no file beyond 64 KiB
    folder, message = subprocess.run(
        full, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert (
        f"can't be written to {folder}: File too large. Free space there, or set TMPDIR" in message
    )


@pytest.mark.parametrize("name", ["moments", "latent"])
@pytest.mark.parametrize("broken", [None, 2])
def test_what_a_device_measured_along_with_a_batch_is_what_the_writer_would_measure(
    tmp_path: Path, name: str, broken: int | None
) -> None:
    batches = [batch.half() for batch in draw_moments(12).chunk(3)]
    if broken is not None:
        batches[1][
            broken, 0, 0, 0
        ] = torch.inf  # so that this batch is measured here, without that row
    here = write(tmp_path / "here", batches, name)
    writer, start = UnitWriter(UNIT), 0
    for batch in batches:
        measured = measure_on_device({name: batch}, name)
        writer.add(BUCKET, labels(range(start, start + len(batch))), {name: batch}, None, measured)
        start += len(batch)
    writer.commit(LocalFolder(tmp_path / "there"), {}, "f")
    there = read(tmp_path / "there")
    assert all(torch.equal(value, there[0][key]) for key, value in here[0].items())
    first, second = (json.loads(metadata["statistics"]) for _, metadata in (here, there))
    assert first["count"] == second["count"]
    for figure in ("mean", "squares", "variance_sum"):
        assert second[figure] == pytest.approx(first[figure], rel=1e-12)
    assert (writer.num_ok, writer.num_skipped) == ((12, 0) if broken is None else (11, 1))

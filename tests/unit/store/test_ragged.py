"""Ragged and masked rows on disk: what a unit holds of them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from verified import verify_dataset

import latentkit as lk
from latentkit.contracts import Entry, LatentLayout, Normalization, Unit
from latentkit.errors import PluginError
from latentkit.runtime.buffers import BufferPool
from latentkit.store.compact import compact
from latentkit.store.dataset_json import Description, finalize, read_dataset
from latentkit.store.int8 import dequantize, quantize
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import PlanSettings, list_entries, plan_of, write_plan
from latentkit.store.ragged import are_offsets, offsets_of, pad, starts_of
from latentkit.store.writer import RowLabel, UnitWriter

LENGTHS = [3, 1, 4]


def labels(count: int, start: int = 0) -> list[RowLabel]:
    return [RowLabel(start + place, "plain", 0, f"{place:064x}") for place in range(count)]


def batch(*shape: int, lengths: list[int] = LENGTHS, axis: int = 2) -> dict[str, Tensor]:
    values = torch.arange(float(np.prod(shape))).reshape(shape)
    return {
        "latent": values,
        "mask": (torch.arange(shape[axis]) < torch.tensor(lengths)[:, None]).to(torch.uint8),
    }


def tensors_of(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "units" / "000-000000.safetensors", "pt") as file:
        return {
            name: file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118 (not a mapping)
            if "/" in name and "_pad" not in name
        }


@pytest.mark.parametrize(("shape", "axis"), [((3, 2, 5), 2), ((3, 2, 5, 3), 2), ((3, 2, 3, 5), 3)])
def test_a_row_is_one_run_of_positions(tmp_path: Path, shape: tuple[int, ...], axis: int) -> None:
    writer, given = UnitWriter(Unit(0, 0, 0, 3)), batch(*shape, axis=axis)
    writer.add("b", labels(3), given, axis)
    writer.add("b", labels(3, 3), given, axis)
    writer.commit(LocalFolder(tmp_path), {}, "f")
    found = tensors_of(tmp_path)
    assert found["b/latent.offsets"].tolist() == [0, 3, 4, 8, 11, 12, 16]
    first = given["latent"][0].movedim(axis - 1, 0)[:3]
    assert torch.equal(found["b/latent"][:3], first)
    assert torch.equal(found["b/latent"][8:11], first)


def test_a_mask_that_leaves_out_the_middle_keeps_the_rest_in_order(tmp_path: Path) -> None:
    given = batch(1, 2, 5, lengths=[5])
    given["mask"][0, 2] = 0
    writer = UnitWriter(Unit(0, 0, 0, 1))
    writer.add("b", labels(1), given, 2)
    writer.commit(LocalFolder(tmp_path), {}, "f")
    assert torch.equal(tensors_of(tmp_path)["b/latent"], given["latent"][0, :, [0, 1, 3, 4]].T)


def test_scales_of_ragged_rows_are_those_of_rows_alone() -> None:
    values = np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)
    stored, scale = quantize(values, np.array(LENGTHS))
    for row, start in enumerate(starts_of(np.array(LENGTHS)).tolist()):
        own = np.moveaxis(values[start : start + LENGTHS[row]], 0, -1)[None]
        alone, alone_scale = quantize(np.ascontiguousarray(own))
        np.testing.assert_array_equal(scale[row], alone_scale[0])
        np.testing.assert_array_equal(
            np.moveaxis(stored[start : start + LENGTHS[row]], 0, -1), alone[0]
        )
    assert dequantize(stored, np.repeat(scale, LENGTHS, axis=0)).shape == values.shape


def test_offsets_and_padding() -> None:
    offsets = offsets_of(np.array(LENGTHS))
    assert offsets.tolist() == [0, 3, 4, 8]
    assert are_offsets(offsets, 8)
    assert not any(
        are_offsets(np.array(wrong), 8)
        for wrong in ([], [0], [0, 9], [1, 8], [0, 4, 4, 8], [0, 5, 4, 8])
    )
    rows, mask = pad(np.arange(16.0).reshape(8, 2) + 1, np.array(LENGTHS), BufferPool(False))
    assert rows.shape == (3, 4, 2)
    assert mask.sum(1).tolist() == LENGTHS
    assert (rows[~mask] == 0).all()
    np.testing.assert_array_equal(rows[mask], np.arange(16.0).reshape(8, 2) + 1)


def test_rows_of_a_bucket_are_alike() -> None:
    writer, given = UnitWriter(Unit(0, 0, 0, 3)), batch(3, 2, 5)
    writer.add("b", labels(3), given)
    with pytest.raises(PluginError, match="with a mask and without"):
        writer.add("b", labels(3, 3), {"latent": given["latent"]})
    with pytest.raises(
        PluginError, match=r"b/latent: rows of one bucket have the shapes \(2, 5\) and \(2, 6\)"
    ):
        writer.add("b", labels(3, 3), batch(3, 2, 6))
    writer.close()


def test_units_without_a_mask_count_whole_also_when_compacted(tmp_path: Path) -> None:
    folder, settings = LocalFolder(tmp_path / "out"), PlanSettings(
        {"encoder.name": "x"}, 3, 3, 1, False, {}
    )
    plan = plan_of(0, list_entries(Entry(f"{row}") for row in range(9)), settings)
    write_plan(folder, plan)
    for unit in plan.units():
        writer, given = UnitWriter(unit), batch(3, 2, 5)
        writer.add(
            "b", labels(3, unit.start), given if unit.number == 1 else {"latent": given["latent"]}
        )
        writer.commit(
            folder, {"batch_size": 3, "threads": 1, "compile": False}, settings.fingerprint
        )
    layout = LatentLayout("latent", "deterministic", "CL", 2, 1)
    finalize(
        folder,
        [plan],
        Description(layout, Normalization(), "mean", "float32", {}, ["plain"]),
        lambda index: None,
    )
    for compacted in (False, True):
        if compacted:
            assert compact(folder).units_after == 1
        assert read_dataset(folder)["masked"] == "L"
        (loaded,) = lk.open(tmp_path / "out").batches(9)
        assert loaded["latent_mask"].sum(1).tolist() == [5, 5, 5, *LENGTHS, 5, 5, 5]
        assert read_dataset(folder)["statistics"]["count"] == 6 * 5 + sum(LENGTHS)
        assert not verify_dataset(tmp_path / "out").damage

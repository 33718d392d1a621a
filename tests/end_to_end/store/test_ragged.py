"""Rows of different length, and rows with a mask: what is stored is what counts, and batches are
padded with zeros.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from verified import verify_dataset

import latentkit as lk
from latentkit.errors import EncoderError, PluginError, RecipeError
from latentkit.store.compact import compact
from latentkit.store.dataset_json import read_dataset
from latentkit.store.local_folder import LocalFolder
from latentkit.tasks.preview import preview_dataset
from latentkit.upkeep.compare_values import compare_values
from latentkit.upkeep.inspect_dataset import describe, inspect_dataset
from latentkit.upkeep.repair import repair_dataset
from latentkit.upkeep.verify import verify_folder

COUNT = 12
SHIFT, SCALE = np.array([0.5, 0.25, 0.125]), np.array([2.0, 4.0, 8.0])
MakeRecipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(waves: Any, tmp_path: Path) -> MakeRecipe:
    def make(
        folder: str = "out", pad: str = "16", dtype: str = "float32", **encoder: Any
    ) -> dict[str, Any]:
        return {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": COUNT}},
            "modality": {"use": "waves", "with": {"pad": pad}},
            "encoder": {"use": "waves", "with": encoder},
            "output": {"path": str(tmp_path / folder), "dtype": dtype, "unit_size": 4},
            "batch_size": 1 if pad == "none" else 3,
            "threads": 1,
            "compile": False,
            "preview": 0,
        }

    return make


def expected_mean(waves: Any, number: int) -> np.ndarray[Any, Any]:
    """(3, l) float64: means of four values of a wave, the last of them with zeros, times 1, 2, 3.
    """
    wave = waves.wave_of(number).astype(np.float64)
    whole = np.pad(wave, (0, -len(wave) % 4)).reshape(-1, 4).mean(1)
    means: np.ndarray[Any, Any] = np.array([1.0, 2.0, 3.0])[:, None] * whole
    return means


def good(waves: Any) -> list[int]:
    return [number for number in range(COUNT) if number % 10 != waves.BAD]


def rows_of(data: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Everything that batches give, row by row, by key."""
    return {
        key: {name: values[place] for name, values in batch.items()}
        for batch in data.batches(3, **options)
        for place, key in enumerate(batch["key"])
    }


@pytest.mark.parametrize("pad", ["16", "all", "none"])
@pytest.mark.parametrize("takes_mask", [False, True])
def test_rows_are_stored_at_their_own_length(
    waves: Any, recipe: MakeRecipe, pad: str, takes_mask: bool
) -> None:
    if pad == "none" and takes_mask:
        with pytest.raises(EncoderError, match="takes_mask"):
            lk.run(recipe(pad=pad, takes_mask=True))
        return
    # An encoder that isn't given the mask sees the padding, which reaches a wave's last latent
    # where it isn't a multiple of four.
    data = lk.open(
        lk.run(recipe(pad=pad, takes_mask=takes_mask)).folder.path,
        posterior="mean",
        columns=["text"],
    )
    numbers = good(waves)
    assert data.keys == [f"{number:03d}" for number in numbers]
    exact = takes_mask or pad == "none"
    for place, number in enumerate(numbers):
        item, expected = data[place], expected_mean(waves, number)
        length = expected.shape[1]
        whole = length if exact else waves.length_of(number) // 4
        assert item["latent"].shape == (3, length)
        assert item["latent_mask"].tolist() == [True] * length
        normalized = (expected - SHIFT[:, None]) * SCALE[:, None]
        np.testing.assert_allclose(item["latent"][:, :whole], normalized[:, :whole], atol=1e-5)
        assert item["text"] == f"wave {number}"
        np.testing.assert_allclose(
            data.moments(place)["logvar"][:, :whole], -expected[:, :whole], atol=1e-6
        )


@pytest.mark.parametrize("posterior", ["sample", "mean", "moments"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_batches_are_items_with_zeros_behind(
    recipe: MakeRecipe, posterior: Any, dtype: str
) -> None:
    data = lk.open(lk.run(recipe(pad="all", dtype=dtype)).folder.path, posterior=posterior)
    name = data.output_name
    widths = set()
    for batch in data.batches(4, shuffle=True):
        values, mask = batch[name], batch[f"{name}_mask"]
        widths.add(values.shape[2])
        assert mask.shape == (len(values), values.shape[2])
        assert mask.any(0).all(), "padded to the longest row, not further"
        assert not values.movedim(1, 2)[~mask].any()
        for row, keep, key in zip(values, mask, batch["key"], strict=True):
            item = data[data.keys.index(key)]
            length = int(keep.sum())
            assert keep[:length].all()
            assert item[name].shape == row[:, :length].shape
            if posterior != "sample":
                assert torch.equal(item[name], row[:, :length])
    assert len(widths) > 1


def test_a_draw_is_the_same_however_rows_were_padded(recipe: MakeRecipe) -> None:
    narrow, wide = (lk.run(recipe(pad, pad, takes_mask=True)) for pad in ("16", "all"))
    narrow.set_epoch(0)
    wide.set_epoch(0)
    first, second = ([data[index] for index in range(len(data))] for data in (narrow, wide))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["latent"], other["latent"])


def test_indices_are_padded_with_zeros(waves: Any, recipe: MakeRecipe) -> None:
    data = lk.run(recipe(kind="quantised", takes_mask=True, pad="all"))
    (batch,) = data.batches(100)
    for row, mask, key in zip(batch["indices"], batch["indices_mask"], batch["key"], strict=True):
        expected = np.trunc(expected_mean(waves, int(key))[0] * 100).astype(np.int64)
        np.testing.assert_allclose(row[mask], expected, atol=1)
        assert not row[~mask].any()
    assert data.decode(batch["indices"][:, None]).shape == (
        len(data),
        1,
        4 * batch["indices"].shape[1],
    )


def test_int8_has_a_scale_per_row_and_channel(waves: Any, recipe: MakeRecipe) -> None:
    data = lk.open(lk.run(recipe(dtype="int8", takes_mask=True)).folder.path, posterior="mean")
    for place, number in enumerate(good(waves)):
        raw = data.normalization.invert(data[place]["latent"], "CL").double().numpy()
        expected = expected_mean(waves, number)
        assert (np.abs(raw - expected) <= np.abs(expected).max(1, keepdims=True) / 254 + 1e-6).all()


def test_statistics_are_of_what_counts(waves: Any, recipe: MakeRecipe) -> None:
    for ragged in (True, False):
        statistics = lk.run(
            recipe(f"ragged-{ragged}", "all", takes_mask=True, ragged=ragged)
        ).statistics
        everything = np.concatenate(
            [expected_mean(waves, number) for number in good(waves)], axis=1
        )
        assert statistics["count"] == everything.shape[1]
        np.testing.assert_allclose(statistics["mean"], everything.mean(1), atol=1e-6)
        np.testing.assert_allclose(
            statistics["std"], np.sqrt(everything.var(1) + np.exp(-everything).mean(1)), rtol=1e-5
        )


def test_rows_of_one_shape_keep_their_mask_beside_them(waves: Any, recipe: MakeRecipe) -> None:
    data = lk.run(recipe(pad="all", ragged=False))
    assert read_dataset(data.folder)["masked"] == "L"
    (batch,) = data.batches(100)
    assert batch["latent"].shape == (len(data), 3, 12)
    for mask, key in zip(batch["latent_mask"], batch["key"], strict=True):
        length = -(-waves.length_of(int(key)) // 4)
        assert mask.tolist() == [True] * length + [False] * (12 - length)
    assert torch.equal(data[2]["latent_mask"], batch["latent_mask"][2])
    bare = lk.run(recipe("bare", pad="none", ragged=False))
    assert set(bare[0]) == {"latent", "key", "view"}
    assert bare[0]["latent"].shape == (3, 2)


def test_dataloader_and_collate_pad_too(recipe: MakeRecipe) -> None:
    data = lk.open(lk.run(recipe(pad="all")).folder.path, posterior="mean")
    (expected,) = data.batches(100)
    for collate in (lk.collate, lambda rows: lk.collate(list(rows))):
        (batch,) = DataLoader(data, batch_size=100, collate_fn=collate)
        assert torch.equal(batch["latent"], expected["latent"])
        assert torch.equal(batch["latent_mask"], expected["latent_mask"])
    assert torch.equal(pickle.loads(pickle.dumps(data))[1]["latent"], data[1]["latent"])


def test_state_resumes_and_ranks_share_out(recipe: MakeRecipe) -> None:
    folder = lk.run(recipe()).folder.path
    whole = [batch["latent"] for batch in lk.open(folder).batches(2, shuffle="units")]
    loader = lk.open(folder).batches(2, shuffle="units")
    iterator = iter(loader)
    next(iterator), next(iterator)
    resumed = lk.open(folder).batches(2, shuffle="units")
    resumed.load_state_dict(loader.state_dict())
    assert all(
        torch.equal(one["latent"], other) for one, other in zip(resumed, whole[2:], strict=True)
    )
    ranks = [
        rows_of(lk.open(folder, posterior="mean"), rank=rank, world_size=2) for rank in range(2)
    ]
    assert sorted([*ranks[0], *ranks[1]]) == lk.open(folder).keys
    data = lk.open(folder)
    data.will_need(np.arange(len(data)), 0)


def test_join_gives_both_and_their_masks(recipe: MakeRecipe) -> None:
    first = lk.run(recipe("first", "all", ragged=False, name="sound"))
    second = lk.run(recipe("second", name="text-embedding"))
    batch, *_ = lk.join(first, second).batches(4)
    assert set(batch) == {
        "sound",
        "sound_mask",
        "text-embedding",
        "text-embedding_mask",
        "key",
        "view",
    }
    assert (
        batch["text-embedding"].shape[2]
        == batch["text-embedding_mask"].shape[1]
        == batch["text-embedding_mask"].sum(1).max()
    )


def test_inspect_verify_and_preview_know_of_it(recipe: MakeRecipe, tmp_path: Path) -> None:
    for ragged in (True, False):
        path = lk.run(recipe(f"ragged-{ragged}", "all", ragged=ragged) | {"preview": 3}).folder.path
        assert ("L of each row's own length" if ragged else "a mask along L") in describe(
            inspect_dataset(str(path))
        )
        assert not verify_dataset(path).damage
        findings = compare_values(verify_folder(LocalFolder(path)), seed=0)
        assert [finding.part for finding in findings] == ["remark"], findings
        assert "equal bit for bit" in str(findings[0])
        assert (path / "preview.npz").exists()
        preview_dataset(str(path), tmp_path / "other.npz", 2)
        shown = np.load(tmp_path / "other.npz")
        assert len(shown["arr_0"][0]) == 6, "padding isn't shown"
        with pytest.raises(RecipeError, match=r"\.npz files"):
            preview_dataset(str(path), tmp_path / "other.png", 2)


@pytest.mark.parametrize(
    ("ragged", "dtype"), [(True, "float32"), (True, "int8"), (False, "float32")]
)
def test_values_that_are_no_longer_the_encoders_are_found(
    waves: Any, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, ragged: bool, dtype: str
) -> None:
    folder = LocalFolder(lk.run(recipe(pad="all", dtype=dtype, ragged=ragged)).folder.path)
    encode = waves.WaveEncoder.encode

    def off_at_the_end(self: Any, batch: Any) -> Any:
        latents = encode(self, batch)
        latents["mean"][:, :, 1] += 1.0
        return latents

    monkeypatch.setattr(waves.WaveEncoder, "encode", off_at_the_end)
    for seed in range(3):
        (finding,) = compare_values(verify_folder(folder), seed=seed)
        assert finding.part == "unit"
        assert "rows encoded again: the values differ" in finding.what


@pytest.mark.parametrize("ragged", [True, False])
def test_compacting_copies_bit_for_bit(recipe: MakeRecipe, ragged: bool) -> None:
    for dtype in ("float32", "int8"):
        data = lk.open(
            lk.run(recipe(dtype, "all", dtype, ragged=ragged)).folder.path, posterior="moments"
        )
        before, statistics = rows_of(data), data.statistics
        assert compact(data.folder).units_after == 1
        assert not verify_dataset(str(data.folder)).damage
        after = lk.open(str(data.folder), posterior="moments")
        assert all(
            torch.equal(row["moments"], before[key]["moments"])
            for key, row in rows_of(after).items()
        )
        assert after.statistics is not None
        assert statistics is not None
        np.testing.assert_allclose(after.statistics["std"], statistics["std"], rtol=1e-12)
        assert after.statistics["count"] == statistics["count"]


@pytest.mark.parametrize("ragged", [True, False])
def test_a_damaged_unit_is_mended_to_the_same_bytes(recipe: MakeRecipe, ragged: bool) -> None:
    folder = lk.run(recipe(pad="all", ragged=ragged)).folder.path
    unit = folder / "units" / "000-000001.safetensors"
    before = unit.read_bytes()
    unit.write_bytes(before[:5000] + b"!" + before[5001:])
    assert verify_dataset(folder).names("unit") == ["units/000-000001.safetensors"]
    assert not repair_dataset(str(folder)).report.damage
    assert unit.read_bytes() == before


@pytest.mark.parametrize("defect", ["nan", "empty"])
@pytest.mark.parametrize("ragged", [True, False])
def test_rows_without_a_good_latent_are_skipped(
    waves: Any, recipe: MakeRecipe, defect: str, ragged: bool
) -> None:
    wrong = [f"{number:03d}" for number in good(waves) if waves.wave_of(number)[0] > 0.5]
    data = lk.run(
        recipe(pad="all", takes_mask=True, defect=defect, ragged=ragged) | {"max_bad": 1.0}
    )
    assert 0 < len(wrong) < len(good(waves)) - 1
    assert data.keys == [f"{number:03d}" for number in good(waves) if f"{number:03d}" not in wrong]
    reason = {"nan": "not finite", "empty": "mask is empty"}[defect]
    ledger = inspect_dataset(str(str(data.folder)), with_ledger=True)["ledger"]
    assert [row["key"] for row in ledger if reason in (row["reason"] or "")] == wrong
    whole = lk.open(
        lk.run(recipe("whole", pad="all", takes_mask=True, ragged=ragged)).folder.path,
        posterior="mean",
    )
    kept = lk.open(str(data.folder), posterior="mean")
    assert all(
        torch.equal(kept[place]["latent"], whole[whole.keys.index(key)]["latent"])
        for place, key in enumerate(kept.keys)
    )


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            {"defect": "size", "ragged": False},
            "sizes L 12 for an input of L 48; its layout says L 24",
        ),
        ({"defect": "size"}, r"mask at the latents' size has shape \(1, 24\).*expected \(1, 12\)"),
        ({"defect": "mask", "takes_mask": True}, r"shape \(1, 11\).*expected \(1, 12\)"),
    ],
)
def test_what_an_encoder_says_wrongly_is_found_with_the_first_batch(
    recipe: MakeRecipe, encoder: dict[str, Any], message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        lk.run(recipe(pad="all", **encoder) | {"batch_size": "auto"})


def test_rows_of_a_bucket_that_differ_are_refused(
    waves: Any, recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = waves.Wave.prepare

    def in_one_bucket(self: Any, sample: Any) -> Any:
        import dataclasses

        return (dataclasses.replace(view, bucket="any") for view in prepare(self, sample))

    monkeypatch.setattr(waves.Wave, "prepare", in_one_bucket)
    with pytest.raises(PluginError, match=r"rows of one bucket as .*\(1, 16\).*\(1, 32\)"):
        lk.run(recipe())
    # One by one they never meet in a batch, and ragged rows needn't be alike.
    alone = lk.run(recipe("alone", "none"))
    assert {batch["latent"].shape[0] for batch in alone.batches(100)} == {len(good(waves))}

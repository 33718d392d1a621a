"""`output.dtype: int8` through the whole line, beside the same latents in float32."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import latentkit as lk
from latentkit.errors import FingerprintError
from latentkit.store.dataset_json import read_dataset

NUM_PHOTOS = 7


@pytest.fixture
def photos(make_photos: Callable[..., Path]) -> Path:
    return make_photos(NUM_PHOTOS)


def encode(
    photos: Path, output: Path, dtype: str, store: str = "moments", preview: int = 0, size: int = 64
) -> lk.LatentDataset:
    recipe = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(photos)}},
        "modality": {"use": "image", "with": {"size": size}},
        "encoder": {"use": "tiny-kl"},
        "output": {"path": str(output), "store": store, "dtype": dtype, "unit_size": 4},
        "batch_size": 3,
        "threads": 1,
        "preview": preview,
    }
    dataset = lk.run(recipe)
    assert isinstance(dataset, lk.LatentDataset)
    return dataset


def all_moments(dataset: lk.LatentDataset) -> torch.Tensor:
    """(rows, 2C, h, w) float64."""
    rows = [dataset.moments(number) for number in range(len(dataset))]
    return torch.stack([torch.cat([row["mean"], row["logvar"]]) for row in rows]).double()


def decode_all(dataset: lk.LatentDataset) -> torch.Tensor:
    """Pictures of the stored means, (rows, 3, H, W) float64 in [-1, 1]."""
    data = lk.open(str(dataset.folder), posterior="mean")
    return (
        data.decode(torch.stack([data[row]["latent"] for row in range(len(data))]))
        .double()
        .clamp(-1, 1)
    )


def test_values_are_within_half_a_step_of_float32_ones(photos: Path, tmp_path: Path) -> None:
    given = all_moments(encode(photos, tmp_path / "float", "float32"))
    read = all_moments(encode(photos, tmp_path / "int8", "int8"))
    half_step = given.abs().amax((2, 3), keepdim=True) / 127 / 2
    assert ((read - given).abs() <= half_step * 1.00001).all()
    assert not torch.equal(read, given)


def test_dataset_states_the_error_and_the_statistics_of_what_is_read(
    photos: Path, tmp_path: Path
) -> None:
    given = all_moments(encode(photos, tmp_path / "float", "float32"))
    dataset = encode(photos, tmp_path / "int8", "int8")
    read = all_moments(dataset)
    channels = dataset.layout.channels
    rms = read_dataset(dataset.folder)["quantisation"]["rms"]
    expected = (read - given).square().mean((0, 2, 3)).sqrt().numpy()
    np.testing.assert_allclose(rms["mean"], expected[:channels], rtol=1e-9)
    np.testing.assert_allclose(rms["logvar"], expected[channels:], rtol=1e-9)
    assert dataset.statistics is not None
    np.testing.assert_allclose(
        dataset.statistics["mean"],
        read[:, :channels].mean((0, 2, 3)).numpy(),
        rtol=1e-9,
        atol=1e-12,
    )


def test_other_dtypes_state_no_quantization(photos: Path, tmp_path: Path) -> None:
    assert "quantisation" not in read_dataset(encode(photos, tmp_path / "float", "float16").folder)


def test_latents_without_a_posterior_are_quantized_too(photos: Path, tmp_path: Path) -> None:
    given = encode(photos, tmp_path / "float", "float32", "mean")
    read = encode(photos, tmp_path / "int8", "int8", "mean")
    stated = read_dataset(read.folder)["quantisation"]
    difference = torch.stack(
        [(read[row]["latent"] - given[row]["latent"]).double() for row in range(NUM_PHOTOS)]
    )
    scale = torch.tensor(read.normalization.scale, dtype=torch.float64)
    expected = difference.square().mean((0, 2, 3)).sqrt() / scale
    np.testing.assert_allclose(stated["rms"]["latent"], expected.numpy(), rtol=1e-4)


def test_batches_and_items_hold_the_same_values(photos: Path, tmp_path: Path) -> None:
    path = encode(photos, tmp_path / "int8", "int8").folder
    data = lk.open(str(path), posterior="mean")
    rows = torch.cat([batch["latent"] for batch in data.batches(3)])
    assert rows.dtype == torch.float32
    for number in range(NUM_PHOTOS):
        assert torch.equal(data[number]["latent"], rows[number])


def test_psnr_of_the_preview_samples_is_stated_and_is_that_of_the_stored_latents(
    photos: Path, tmp_path: Path
) -> None:
    given = encode(photos, tmp_path / "float", "float32")
    read = encode(photos, tmp_path / "int8", "int8", preview=NUM_PHOTOS)
    stated = read_dataset(read.folder)["quantisation"]
    assert stated["num_samples"] == NUM_PHOTOS
    exact, rounded = decode_all(given), decode_all(read)
    levels = [
        10 * math.log10(4 / float((a - b).square().mean()))
        for a, b in zip(exact, rounded, strict=True)
    ]
    assert stated["psnr_db"] == pytest.approx(np.mean(levels), abs=0.1)
    assert stated["psnr_db"] == round(stated["psnr_db"], 2) > 40


def test_units_are_half_those_of_float16_and_the_same_in_every_run(
    photos: Path, tmp_path: Path
) -> None:
    for name, dtype in (("float", "float16"), ("first", "int8"), ("second", "int8")):
        encode(photos, tmp_path / name, dtype, size=256)
    sizes, contents = {}, {}
    for name in ("float", "first", "second"):
        units = sorted((tmp_path / name / "units").iterdir())
        sizes[name] = sum(unit.stat().st_size for unit in units)
        contents[name] = [unit.read_bytes() for unit in units] + [
            json.loads((tmp_path / name / "dataset.json").read_text())["statistics"]
        ]
    assert contents["first"] == contents["second"]
    assert sizes["first"] < 0.7 * sizes["float"]


def test_int8_is_not_mixed_with_other_dtypes(photos: Path, tmp_path: Path) -> None:
    encode(photos, tmp_path / "out", "float16")
    with pytest.raises(FingerprintError, match="dtype"):
        encode(photos, tmp_path / "out", "int8")

"""dataset.json's statistics are those of the rows that it has, whatever else its units hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from verified import verify_dataset

import latentkit as lk
from latentkit.store.dataset_json import read_dataset, read_index, read_units
from latentkit.store.folder import canonical_json
from latentkit.store.live_statistics import measure_live
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import read_chain

MakePhotos = Callable[..., Path]
NAMES = ("mean", "mean_std", "std")


def encode(photos: Path, output: Path, encoder: Path, dtype: str) -> Any:
    options = {
        "batch_size": 2,
        "threads": 1,
        "output.unit_size": 5,
        "preview": 0,
        "output.dtype": dtype,
    }
    return lk.encode(photos, output, encoder=encoder, size=32, overrides=options)


def sha256_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(document).encode()).hexdigest()


def as_read(data: lk.LatentDataset) -> dict[str, Any]:
    """Statistics of what a reader sees, by numpy."""
    moments = lk.open(str(data.folder), posterior="moments")
    rows = np.stack([moments[row]["moments"].double().numpy() for row in range(len(moments))])
    mean, logvar = np.split(rows, 2, axis=1)
    spread = mean.var((0, 2, 3))
    return {
        "count": mean[:, 0].size,
        "mean": mean.mean((0, 2, 3)),
        "mean_std": np.sqrt(spread),
        "std": np.sqrt(spread + np.exp(logvar).mean((0, 2, 3))),
    }


def change(photos: Path) -> None:
    """Leave one row of the first unit, and all but one of the second; the third stays whole."""
    for number in (0, 1, 2, 4):
        (photos / f"{number:03d}.png").unlink()
    Image.new("RGB", (48, 48), (250, 20, 20)).save(photos / "007.png")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_after_a_change_of_the_source_statistics_are_those_from_scratch(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path, dtype: str
) -> None:
    photos = make_photos(13)
    encode(photos, tmp_path / "out", kl_folder, dtype)
    change(photos)
    data = encode(photos, tmp_path / "out", kl_folder, dtype)
    assert data.statistics is not None
    scratch = encode(photos, tmp_path / "scratch", kl_folder, dtype).statistics
    read = as_read(data)
    assert data.statistics["count"] == read["count"] == scratch["count"] == 9 * 8 * 8
    for name in NAMES:
        np.testing.assert_allclose(data.statistics[name], read[name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(data.statistics[name], scratch[name], rtol=1e-3, atol=1e-4)
    assert not verify_dataset(str(data.folder)).damage


def test_statistics_of_whole_units_of_an_earlier_version_are_no_damage(
    make_photos: MakePhotos, kl_folder: Path, tmp_path: Path
) -> None:
    photos = make_photos(6)
    before = encode(photos, tmp_path / "out", kl_folder, "float32").statistics
    (photos / "000.png").unlink()
    folder = encode(photos, tmp_path / "out", kl_folder, "float32").folder
    document = read_dataset(folder)
    assert document["statistics"]["count"] < before["count"]
    document["statistics"] = before  # both units, all rows
    sealed = {**document, "sha256": sha256_of(document)}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(sealed))
    assert not verify_dataset(str(tmp_path / "out")).damage
    document["statistics"] = {**before, "mean": [0.0] * 4}
    sealed = {**document, "sha256": sha256_of(document)}
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(sealed))
    (found,) = verify_dataset(str(tmp_path / "out")).damage
    assert "statistics differ" in found.what


@pytest.mark.parametrize(
    ("ragged", "dtype"), [(True, "float32"), (True, "int8"), (False, "float32")]
)
@pytest.mark.parametrize("keep", [2, 3], ids=["every second", "two of three"])
def test_only_what_counts_of_live_rows_is_measured(
    waves: Any, tmp_path: Path, ragged: bool, dtype: str, keep: int
) -> None:
    recipe = {
        "task": "encode",
        "source": {"use": "waves", "with": {"count": 12}},
        "modality": {"use": "waves", "with": {"pad": "all"}},
        "encoder": {"use": "waves", "with": {"takes_mask": True, "ragged": ragged}},
        "output": {"path": str(tmp_path / "out"), "dtype": dtype, "unit_size": 6},
        "batch_size": 4,
        "compile": False,
        "threads": 1,
        "preview": 0,
    }
    data = lk.open(lk.run(recipe).folder.path, posterior="moments")
    folder = open_folder(str(data.folder))
    document, plans = read_dataset(folder), read_chain(folder)
    index = read_index(folder, document)
    chosen = [row for row in range(index.num_rows) if row % keep != keep - 1]
    found = measure_live(folder, read_units(folder, plans), index.take(pa.array(chosen)))
    keys = {index["key"][row].as_py() for row in chosen}
    items = [data[row] for row in range(len(data)) if data.keys[row] in keys]
    rows = [item["moments"].double().numpy()[:, item["moments_mask"].numpy()] for item in items]
    mean, logvar = np.split(np.concatenate(rows, axis=1), 2)
    assert found is not None
    assert found.count == mean.shape[1]
    np.testing.assert_allclose(found.mean, mean.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.squares, mean.var(1) * mean.shape[1], rtol=1e-9)
    np.testing.assert_allclose(found.variance_sum, np.exp(logvar).sum(1), rtol=1e-9)

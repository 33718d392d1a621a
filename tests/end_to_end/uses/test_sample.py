"""The task sample on photos and tiny-kl: what it writes, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import latentkit as lk
from latentkit import builtin
from latentkit.errors import LatentkitError
from latentkit.testing import TaskContract

NUM_PHOTOS = 12
SPECS = {spec.name: spec for spec in builtin.latentkit_tasks()}


@pytest.fixture(scope="module")
def latents(write_photos: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents of photos with an attribute `label` (even or odd) and one of a single item."""
    folder = tmp_path_factory.mktemp("sample")
    photos = write_photos(folder / "photos", NUM_PHOTOS)
    names = sorted(path.name for path in photos.iterdir() if path.suffix != ".txt")
    lines = [
        json.dumps({"file_name": name, "label": ["even", "odd"][n % 2], "name": name})
        for n, name in enumerate(names)
    ]
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    overrides = {"batch_size": 4, "threads": 1, "preview": 0}
    lk.encode(photos, folder / "latents", size=64, overrides=overrides, device="cpu")
    return folder / "latents"


def read_metadata(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "samples" / "metadata.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


class TestSampleTask(TaskContract):
    spec = SPECS["sample"]

    @pytest.fixture(autouse=True)
    def _latents(self, latents: Path) -> None:
        self.latents = latents

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        values = {"task": "sample", "latents": str(self.latents), "count": 2}
        return {**values, "output": {"path": "out"}}


def test_new_items_are_a_dataset_with_what_is_known_of_each(latents: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    result = lk.sample(latents, tmp_path / "out", count=5, by="label", seed=3, device="cpu")
    rows = load_dataset(str(tmp_path / "out" / "samples"), split="train", cache_dir=str(tmp_path))
    assert rows["label"] == ["even"] * 3 + ["odd"] * 2
    assert set(rows["seed"]) == {3}
    assert result is not None
    assert set(rows["sampler"]) == {result.fitted.sampler.name}
    assert set(rows["nearest_key"]) <= set(lk.open(latents).keys)
    assert min(rows["nearest_distance"]) > 0
    assert {image.size for image in rows["image"]} == {(64, 64)}
    assert len({image.tobytes() for image in rows["image"]}) == 5
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 5 * 64


def test_the_gap_to_the_prior_is_said_first(
    latents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lk.sample(latents, tmp_path, count=2, device="cpu")
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("KL from all latents together to the prior N(0, I): at least")
    assert said[1].startswith("sampler ")
    summary = json.loads((tmp_path / "sample.json").read_text())
    assert 0 < summary["prior_gap"]["kl_at_least"] < summary["prior_gap"]["kl_at_most"]
    moments = [lk.open(latents).moments(n) for n in range(NUM_PHOTOS)]
    mean = np.mean([one["mean"].float().numpy().mean((1, 2)) for one in moments], axis=0)
    assert summary["prior_gap"]["mean"] == pytest.approx(mean, abs=1e-4)


def test_a_seed_gives_the_same_items_again_and_another_seed_others(
    latents: Path, tmp_path: Path
) -> None:
    def draw(name: str, seed: int) -> list[dict[str, Any]]:
        lk.sample(latents, tmp_path / name, count=3, sampler="low-rank", seed=seed, device="cpu")
        return read_metadata(tmp_path / name)

    first = draw("a", 0)
    assert draw("b", 0) == first
    assert [row["nearest_distance"] for row in draw("c", 1)] != [
        row["nearest_distance"] for row in first
    ]


def test_running_again_replaces_the_items(latents: Path, tmp_path: Path) -> None:
    for count in (3, 1):
        lk.sample(latents, tmp_path, count=count, sampler="normal", device="cpu")
    assert len(read_metadata(tmp_path)) == 1
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "nothing"}, "nothing"),
        ({"by": "name"}, "expected values with at least 2 items each"),
        ({"sampler": "mixture"}, "expected latents of at most 512 values|needs scikit-learn|rows"),
        ({"sampler": "vamp"}, "sampler: expected"),
        ({"count": 0}, "count"),
        ({"overrides": {"postrior": "mean"}}, "did you mean 'posterior'"),
        ({"overrides": {"output.path": "s3://bucket/x"}}, "expected a local folder"),
    ],
)
def test_bad_input_is_said(
    latents: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LatentkitError, match=message):
        lk.sample(latents, tmp_path / "out", device="cpu", **{"count": 2, **options})
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_kept(latents: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(LatentkitError, match="something other than a result of the task sample"):
        lk.sample(latents, tmp_path, count=1, device="cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("changes", "buckets", "options", "message"),
    [
        ({}, {"a": (4, 4), "b": (4, 6)}, {}, r"latents of 2 buckets \(a, b\); expected one shape"),
        ({"kind": "quantised"}, {"a": (4, 4)}, {}, "indices of a codebook"),
        ({"store": "mean"}, {"a": (4, 4)}, {"posterior": "sample"}, "needs stored moments"),
    ],
)
def test_latents_that_cannot_be_sampled_are_named(
    write_dataset: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    buckets: dict[str, tuple[int, int]],
    options: dict[str, Any],
    message: str,
) -> None:
    kind, store = changes.get("kind", "gaussian"), changes.get("store", "moments")
    name = {"quantised": "indices"}.get(kind, "moments" if store == "moments" else "latent")
    channels = 1 if kind == "quantised" else 2 if store == "moments" else 1
    dtype = np.int16 if kind == "quantised" else np.float16
    arrays = {
        f"{bucket}/{name}": np.zeros((2, channels, *size), dtype)
        for bucket, size in buckets.items()
    }
    rows = [(f"{b}{n}", "plain", "000-000000", b, n) for b in buckets for n in range(2)]
    layout = {"name": "latent", "kind": kind, "axes": "CHW", "channels": 1, "downscale": 8}
    more = {"layout": {**layout, "ragged_axis": None}, "store": store}
    path = write_dataset(tmp_path / "z", {"000-000000": arrays}, rows, **more)
    with pytest.raises(LatentkitError, match=message):
        lk.sample(path, tmp_path / "out", count=1, overrides=options, device="cpu")

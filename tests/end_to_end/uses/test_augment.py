"""The task augment on photos and tiny-kl: what it writes, and what it refuses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import latentkit as lk
from latentkit import builtin, cli
from latentkit.errors import LatentkitError
from latentkit.testing import TaskContract
from latentkit.uses.new_items import NewItem, make_items
from latentkit.uses.raw_rows import open_rows
from latentkit.uses.recipes import AugmentRecipe, UseOutput

MakeLatents = Callable[..., Path]
SPECS = {spec.name: spec for spec in builtin.latentkit_tasks()}
NUM_PHOTOS = 8


@pytest.fixture(scope="module")
def latents(make_latents: MakeLatents) -> Path:
    return make_latents(0, NUM_PHOTOS)


def make(latents: Path, left_out: int = 0, **options: Any) -> list[NewItem]:
    rows = open_rows(lk.open(latents, columns=["label"]), "auto", 0)
    rows = type(rows)(rows.dataset, rows.items[left_out:], rows.draws, 0, rows.shape)
    values = {"draws": 0, "interpolations": 0, "samples": 0, **options}
    output = UseOutput(path="out")
    recipe = AugmentRecipe(task="augment", latents="x", output=output, **values)
    return list(make_items(rows.split_by("label"), {}, recipe))


class TestAugmentTask(TaskContract):
    spec = SPECS["augment"]

    @pytest.fixture(autouse=True)
    def _latents(self, latents: Path) -> None:
        self.latents = latents

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        values = {"task": "augment", "latents": str(self.latents), "samples": 0}
        return {**values, "output": {"path": "out"}}


def test_new_items_are_a_dataset_with_labels_and_sources(latents: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    result = lk.augment(latents, tmp_path / "out", overrides={"batch_size": 3}, device="cpu")
    assert result is not None
    expected = {"draw": NUM_PHOTOS, "interpolation": NUM_PHOTOS // 2, "sample": NUM_PHOTOS // 2}
    assert {name: dict(found) for name, found in result.counts.items()} == {
        "even": expected,
        "odd": expected,
    }
    rows = load_dataset(str(tmp_path / "out" / "samples"), split="train", cache_dir=str(tmp_path))
    assert Counter(rows["label"]) == {"even": 2 * NUM_PHOTOS, "odd": 2 * NUM_PHOTOS}
    for row in rows:
        parities = {
            ["even", "odd"][int(key.removesuffix(".png")) % 2] for key in row["source_keys"]
        }
        assert parities in ({row["label"]}, set())
        assert (
            len(row["source_keys"]) == {"draw": 1, "interpolation": 2, "sample": 0}[row["method"]]
        )
        assert row["image"].size == (64, 64)
    assert (tmp_path / "out" / "grid.png").stat().st_size > 0


def test_draws_have_the_posterior_s_mean_and_deviation(latents: Path) -> None:
    data, drawn = lk.open(latents), make(latents, draws=400)
    for key in data.keys[:2]:
        moments = data.moments(data.keys.index(key))
        mean, deviation = moments["mean"].float(), (moments["logvar"].float() / 2).exp()
        mine = torch.stack([item.latent for item in drawn if list(item.source_keys) == [key]])
        scaled = (mine - mean) / deviation
        assert abs(float(scaled.mean())) < 0.02
        assert abs(float(scaled.std()) - 1) < 0.02


def test_interpolations_lie_between_two_items_of_a_class(latents: Path) -> None:
    data = lk.open(latents)
    for item in make(latents, interpolations=3):
        first, second = item.source_keys
        assert first != second
        ends = [data.moments(data.keys.index(key))["mean"].float() for key in (first, second)]
        assert item.share is not None
        assert 0.25 <= item.share <= 0.75
        expected = item.share * ends[0] + (1 - item.share) * ends[1]
        assert torch.allclose(item.latent, expected, atol=1e-5)


def test_an_item_s_draws_do_not_depend_on_the_other_items(latents: Path) -> None:
    whole, part = make(latents, draws=2), make(latents, left_out=4, draws=2)
    kept = [item for item in whole if item.source_keys[0] >= "004.png"]
    assert len(kept) == len(part) == 8
    for one, other in zip(kept, part, strict=True):
        assert one.source_keys == other.source_keys
        assert torch.equal(one.latent, other.latent)


def test_test_items_are_left_out(latents: Path, tmp_path: Path) -> None:
    names = [f"{number:03d}.png" for number in (0, 1)]
    overrides = {"test_column": "name", "test_values": names, "samples": 0}
    result = lk.augment(latents, tmp_path / "out", overrides=overrides, device="cpu")
    assert result is not None
    assert (result.num_used, result.num_left_out) == (NUM_PHOTOS - 2, 2)
    lines = (tmp_path / "out" / "samples" / "metadata.jsonl").read_text()
    assert not any(f'"{name}"' in lines for name in names)
    assert '"002.png"' in lines


def test_the_command(
    latents: Path, make_latents: MakeLatents, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_latents(NUM_PHOTOS, NUM_PHOTOS + 2)
    words = ["augment", str(latents), str(tmp_path / "out"), "--test", str(other)]
    assert cli.main([*words, "--set", "samples=0", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "24 new items of 2 classes (16 by draw, 8 by interpolation), made of 8 items" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "name"}, "8 values have one item"),
        ({"label": "nothing"}, "label or test_column: .*nothing"),
        ({"test": "latents"}, "8 items are in the test dataset .* expected none"),
        ({"overrides": {"draws": 0, "interpolations": 0, "samples": 0}}, "expected one above 0"),
        ({"overrides": {"test_column": "name", "test_values": ["x"]}}, "no items have one of the"),
        ({"overrides": {"draw": 1}}, "did you mean 'draws'"),
    ],
)
def test_bad_input_is_said(
    latents: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    if options.get("test"):
        options = {**options, "test": latents}
    with pytest.raises(LatentkitError, match=message):
        lk.augment(latents, tmp_path / "out", device="cpu", **options)
    assert not (tmp_path / "out").exists()


def test_draws_need_stored_moments(make_latents: MakeLatents, tmp_path: Path) -> None:
    means = make_latents(0, 4, **{"output.store": "mean"})
    with pytest.raises(LatentkitError, match=r"no stored moments to draw from. Set draws to 0"):
        lk.augment(means, tmp_path / "out", device="cpu")
    made = make(means, interpolations=1)
    assert len(made) == 4
    assert np.isfinite(made[0].latent.numpy()).all()

"""The task score on photos, some of noise, and tiny-kl: what it writes, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import latentkit as lk
from latentkit import builtin, cli
from latentkit.errors import LatentkitError
from latentkit.testing import TaskContract

MakeLatents = Callable[..., Path]
SPECS = {spec.name: spec for spec in builtin.latentkit_tasks()}
FAST = {"false_positive_rate": 0.25, "contamination": 0.2, "rank": 4, "batch_size": 4}
NUM_PHOTOS, NUM_NOISY = 8, 2


@pytest.fixture(scope="module")
def latents(make_latents: MakeLatents) -> Path:
    return make_latents(20, 20 + NUM_PHOTOS, NUM_NOISY)


@pytest.fixture(scope="module")
def clean(make_latents: MakeLatents) -> Path:
    return make_latents(0, 20)


def score(latents: Path, output: Path, **options: Any) -> Any:
    overrides = {**FAST, **options.pop("overrides", {})}
    return lk.score(latents, output, overrides=overrides, device="cpu", **options)


class TestScoreTask(TaskContract):
    spec = SPECS["score"]

    @pytest.fixture(autouse=True)
    def _latents(self, latents: Path) -> None:
        self.latents = latents

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        values = {"task": "score", "latents": str(self.latents), "contamination": 0.2}
        return {**values, "output": {"path": "out"}}


def test_noise_among_photos_is_found(latents: Path, clean: Path, tmp_path: Path) -> None:
    result = score(latents, tmp_path / "out", clean=clean, label="label", unusual=["noise"])
    assert result.roc_auc["combined"] == result.roc_auc["reconstruction"] == 1.0
    assert result.average_precision["combined"] == 1.0
    rows = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [row["key"] for row in rows] == lk.open(latents).keys
    assert [row["is_labeled_unusual"] for row in rows] == [False] * NUM_PHOTOS + [True] * NUM_NOISY
    assert all(row["is_unusual"] for row in rows[NUM_PHOTOS:])
    names = {"mahalanobis", "nearest", "kl", "reconstruction", "negative_elbo", "combined"}
    assert names < set(rows[0])
    summary = json.loads((tmp_path / "out" / "score.json").read_text())
    assert set(summary["thresholds"]) == names
    assert summary["thresholds"]["combined"]["num_items"] == 4  # one in five of the clean ones
    with Image.open(tmp_path / "out" / "unusual.png") as image:
        assert image.height > NUM_PHOTOS * 64


def test_reconstruction_is_the_error_of_the_decoded_mean(latents: Path, tmp_path: Path) -> None:
    result = score(latents, tmp_path / "out")
    encoder = lk.encoder("tiny-kl", device="cpu")
    photos = latents.parent / "photos"
    keys = [key for key in result.keys if key.startswith("z")]  # the others are resized
    for key in keys:
        found = result.scores["reconstruction"][result.keys.index(key)]
        with Image.open(photos / key) as image:
            assert image.size == (64, 64)
            pixels = np.asarray(image.convert("RGB"), np.float32)
        mean = lk.open(latents).moments(result.keys.index(key))["mean"].float()
        decoded = encoder.decode(encoder.normalize(mean[None]))[0].numpy()
        error = np.square(decoded - (pixels.transpose(2, 0, 1) / 127.5 - 1)).mean()
        assert found == pytest.approx(error, rel=0.02)  # latents are stored in float16


def test_an_item_has_the_same_score_among_others(
    latents: Path, clean: Path, make_latents: MakeLatents, tmp_path: Path
) -> None:
    """Whatever stands beside it, and in whatever batch."""
    whole = score(latents, tmp_path / "whole", clean=clean)
    part = make_latents(24, 20 + NUM_PHOTOS)
    alone = score(part, tmp_path / "part", clean=clean, overrides={"batch_size": 3})
    for place, key in enumerate(alone.keys):
        for name, values in alone.scores.items():
            assert values[place] == pytest.approx(whole.scores[name][whole.keys.index(key)], 1e-4)
    again = score(latents, tmp_path / "whole", clean=clean)
    for name, values in again.scores.items():
        assert np.array_equal(values, whole.scores[name])


def test_latents_alone_need_no_source_and_items_that_are_gone_keep_their_other_scores(
    make_latents: MakeLatents, tmp_path: Path
) -> None:
    latents = make_latents(0, 6)
    (latents.parent / "photos" / "002.png").unlink()
    result = score(latents, tmp_path / "out", overrides={"contamination": 0.4})
    assert result.num_missing == 1
    assert np.isnan(result.scores["reconstruction"]).tolist() == [n == 2 for n in range(6)]
    assert not np.isnan(result.scores["combined"]).any()
    shutil.rmtree(latents.parent / "photos")
    with pytest.raises(LatentkitError, match=r"source can't be opened.*Set from_media to false"):
        score(latents, tmp_path / "out")
    overrides = {"from_media": False, "contamination": 0.4}
    result = score(latents, tmp_path / "alone", overrides=overrides)
    assert set(result.scores) == {"mahalanobis", "nearest", "kl", "combined"}


def test_the_command_and_the_likelihood_regret(
    latents: Path, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["score", str(latents), str(tmp_path / "out"), "--clean", str(clean)]
    words += ["--label", "label", "--unusual", "noise", "--device", "cpu"]
    sets = {**FAST, "regret_steps": 2, "draws": 1}
    words += [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert f"{NUM_PHOTOS + NUM_NOISY} items" in said
    assert "regret: ROC AUC" in said
    regrets = pq.read_table(tmp_path / "out" / "scores.parquet")["regret"].to_pylist()
    assert min(regrets) >= 0
    assert max(regrets) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": "latents"}, "shares 10 items with .* expected other items"),
        ({"clean": "larger"}, "latents of the shape .* Encode both with the same size"),
        ({"clean": "nowhere"}, "nowhere"),
        ({"label": "nothing"}, "label: .*nothing"),
        ({"label": "label", "unusual": ["cat"]}, "no items have .* Its values: even, noise, odd"),
        ({"label": "name", "unusual": "all"}, "all items have one of the values"),
        ({"clean": "clean", "label": "label", "unusual": ["noise", "even"]}, "10 items .* clean"),
        ({"overrides": {"contamination": 0.01}}, "10 items to set thresholds by; .* least 100"),
        ({"overrides": {"drows": 1}}, "did you mean 'draws'"),
    ],
)
def test_bad_input_is_said(
    latents: Path,
    clean: Path,
    make_latents: MakeLatents,
    tmp_path: Path,
    options: dict[str, Any],
    message: str,
) -> None:
    places = {"latents": latents, "clean": clean, "nowhere": tmp_path / "nowhere"}
    if options.get("clean") == "larger":
        places["larger"] = make_latents(0, 2, **{"modality.with.size": 128})
    options = dict(options)
    if "clean" in options:
        options["clean"] = places[options["clean"]]
    if options.get("unusual") == "all":
        options["unusual"] = lk.open(latents).keys
    with pytest.raises(LatentkitError, match=message):
        score(latents, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()

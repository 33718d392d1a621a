"""The task augment-study on photos of two kinds: what it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import latentkit as lk
from latentkit import builtin, cli
from latentkit.errors import LatentkitError
from latentkit.testing import TaskContract
from latentkit.uses.augment_study_task import AugmentStudyResult
from latentkit.uses.classifier import LabeledImages, accuracy, train_classifier
from latentkit.uses.paired import interval_of, paired_interval

MakeLatents = Callable[..., Path]
SPECS = {spec.name: spec for spec in builtin.latentkit_tasks()}
FAST = {"seeds": 2, "steps": 3, "samples": 0, "draws": 1}


@pytest.fixture(scope="module")
def latents(make_latents: MakeLatents) -> Path:
    return make_latents(0, 8)


@pytest.fixture(scope="module")
def tested(make_latents: MakeLatents) -> Path:
    return make_latents(8, 12)


class TestAugmentStudyTask(TaskContract):
    spec = SPECS["augment-study"]

    @pytest.fixture(autouse=True)
    def _latents(self, latents: Path, tested: Path) -> None:
        self.latents, self.tested = latents, tested

    def make_values(self, tmp_path: Path) -> Mapping[str, Any]:
        values = {"task": "augment-study", "latents": str(self.latents), "test": str(self.tested)}
        return {**values, **FAST, "sizes": [2], "output": {"path": "out"}}


def make_stripes(count: int, seed: int) -> LabeledImages:
    """Images with stripes across or along, a class each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    line = torch.arange(16).remainder(4).div(2).floor()
    images = torch.stack(
        [line.expand(16, 16) if label else line.expand(16, 16).T for label in labels]
    )
    noise = torch.randn((count, 1, 16, 16), generator=generator)
    return LabeledImages(images[:, None] + noise, labels)


@pytest.mark.parametrize("augments", [False, True])
def test_a_classifier_learns_and_is_the_same_again(augments: bool) -> None:
    train, test = make_stripes(64, 0), make_stripes(200, 1)
    networks = [train_classifier(train, 2, 60, 0, augments, augments) for _ in range(2)]
    assert accuracy(networks[0], test) > 0.95
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_intervals_are_student_s() -> None:
    values, others = [0.9, 0.95, 0.91, 0.97, 0.94], [0.9, 0.9, 0.9, 0.9, 0.9]
    found = paired_interval(values, others)
    half = 2.776 * statistics.stdev(values) / math.sqrt(5)
    assert found.mean == pytest.approx(0.034)
    assert (found.low, found.high) == pytest.approx((0.034 - half, 0.034 + half))
    assert interval_of([1.0, 1.0]).high == 1.0


@pytest.mark.parametrize(
    ("both", "verdict"),
    [
        ([0.92, 0.93, 0.92], "new items help"),
        ([0.82, 0.83, 0.82], "new items harm"),
        ([0.9, 0.92, 0.88], "no difference is shown"),
    ],
)
def test_the_verdict_is_that_of_the_interval(both: list[float], verdict: str) -> None:
    arms = {"real": [0.8] * 3, "vae": [0.8] * 3, "classical": [0.9, 0.91, 0.89], "both": both}
    assert AugmentStudyResult(Path(), {10: arms}).verdict(10).startswith(verdict)


def test_accuracies_gains_and_verdicts_are_written(
    latents: Path, tested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["augment-study", str(latents), str(tmp_path / "out"), "--test", str(tested)]
    words += ["--sizes", "2", "4", "--device", "cpu"]
    words += [word for key, value in FAST.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "  4 items per class: real " in said
    summary = json.loads((tmp_path / "out" / "augment-study.json").read_text())
    assert summary["num_test_items"] == 4
    assert list(summary["sizes"]) == ["2", "4"]
    for found in summary["sizes"].values():
        assert [len(values) for values in found["accuracies"].values()] == [2] * 4
        assert found["verdict"] in said
    again = lk.augment_study(
        latents, tmp_path / "b", test=tested, sizes=[2, 4], overrides=FAST, device="cpu"
    )
    assert again is not None
    for size, found in summary["sizes"].items():
        assert again.accuracies[int(size)] == found["accuracies"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [5]}, r"label 'even' has 4 items; expected at least 5\. Set sizes"),
        ({"test": "latents"}, "8 items are in the test dataset"),
        ({"label": "nothing"}, "nothing"),
        ({"overrides": {"seeds": 1}}, "seeds"),
    ],
)
def test_bad_input_is_said(
    latents: Path, tested: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    test = latents if options.get("test") else tested
    options = {"sizes": [2], **options, "test": test}
    options["overrides"] = {**FAST, **options.get("overrides", {})}
    with pytest.raises(LatentkitError, match=message):
        lk.augment_study(latents, tmp_path / "out", device="cpu", **options)
    assert not (tmp_path / "out").exists()

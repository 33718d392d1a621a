"""Every check for metrics is proved by a metric that is broken in one way and must fail it; core's
own pass them all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from latentkit.builtin.metrics import METRICS
from latentkit.contracts import (
    BuildContext,
    Config,
    Figure,
    InputSpec,
    Measured,
    MetricBatch,
    MetricSetting,
    MetricSpec,
)
from latentkit.testing import MetricContract, check_names, find_failures
from latentkit.testing.metric import make_pictures


class Mean:
    """The mean absolute error, by a number for each sample."""

    def start(self, setting: MetricSetting) -> None:
        self.values: list[float] = []

    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        self.values += (output - inputs).abs().flatten(1).mean(1).tolist()

    def finish(self) -> Measured:
        values = np.array(self.values)
        return Measured({"": Figure(self.value(), "", "mean", "lower")}, {"": values})

    def value(self) -> float:
        return float(np.mean(self.values))


class IsNan(Mean):
    def finish(self) -> Measured:
        found = super().finish()
        return Measured({**found.figures, "x": Figure(float("nan"), "", "mean")}, found.per_sample)


class SaysNoProtocol(Mean):
    def finish(self) -> Measured:
        return Measured({"": Figure(self.value(), "", " ", "lower")})


class KeepsATensor(Mean):
    def finish(self) -> Measured:
        return Measured(super().finish().figures, tables={"all": torch.zeros(3)})


class FindsNothing(Mean):
    def finish(self) -> Measured:
        return Measured({})


class IsBetterHigher(Mean):
    def finish(self) -> Measured:
        return Measured({"": Figure(self.value(), "", "mean", "higher")})


class LeavesOneOut(Mean):
    def finish(self) -> Measured:
        found = super().finish()
        return Measured(found.figures, {"": found.per_sample[""][1:]})


class NamesAnother(Mean):
    def finish(self) -> Measured:
        found = super().finish()
        return Measured(found.figures, {"other": found.per_sample[""]})


class AveragesBatches(Mean):
    def start(self, setting: MetricSetting) -> None:
        super().start(setting)
        self.batches: list[float] = []

    def add(self, batch: MetricBatch) -> None:
        before = len(self.values)
        super().add(batch)
        self.batches.append(float(np.mean(self.values[before:])))

    def value(self) -> float:
        return float(np.mean(self.batches))


class Sorts(Mean):
    def finish(self) -> Measured:
        self.values.sort()
        return super().finish()


class NeverForgets(Mean):
    def start(self, setting: MetricSetting) -> None:
        self.values = getattr(self, "values", [])


class WorksInPlace(Mean):
    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        self.values += output.sub_(inputs).abs().flatten(1).mean(1).tolist()


class DoubleContract(MetricContract):
    def __init__(self, metric: Callable[[], Any]) -> None:
        self.spec = MetricSpec(
            "double",
            "a mean",
            Config,
            lambda config, context: metric(),
            needs=("decoder",),
            better="lower",
        )

    def entry_point(self) -> str | None:
        return None


NUMBERS = "test_figures_are_numbers_with_their_protocol"
BROKEN: dict[type[Mean], set[str]] = {
    IsNan: {NUMBERS},
    SaysNoProtocol: {NUMBERS},
    KeepsATensor: {NUMBERS},
    FindsNothing: {NUMBERS, "test_better_is_what_the_spec_says"},
    IsBetterHigher: {"test_better_is_what_the_spec_says"},
    LeavesOneOut: {"test_there_is_a_number_for_each_sample_or_none"},
    NamesAnother: {"test_there_is_a_number_for_each_sample_or_none"},
    AveragesBatches: {"test_batches_of_other_sizes_change_nothing"},
    Sorts: {"test_a_sample_s_number_is_its_own"},
    NeverForgets: {"test_start_forgets_what_came_before"},
    WorksInPlace: {"test_what_it_looks_at_stays"},
}


@pytest.mark.parametrize("metric", BROKEN, ids=lambda metric: metric.__name__)
def test_a_metric_broken_in_one_way_fails_the_check_for_it(
    metric: type[Mean], tmp_path: Path
) -> None:
    assert set(find_failures(DoubleContract(metric), tmp_path)) >= BROKEN[metric]


def test_a_good_metric_passes_every_check(tmp_path: Path) -> None:
    assert find_failures(DoubleContract(Mean), tmp_path) == {}


def test_every_check_for_metrics_is_proved() -> None:
    shared = {name for name in check_names(MetricContract) if name not in vars(MetricContract)}
    assert set().union(*BROKEN.values()) == set(check_names(MetricContract)) - shared


OPTIONS: dict[str, dict[str, Any]] = {
    "iwae": {"scale": 1.0, "draws": 4},
    "loss": {"use": "l1"},
    "rfid": {"encoder": {"use": "tiny-kl"}},
    "elbo": {"draws": 2},
}


class CoreContract(MetricContract):
    def __init__(self, name: str) -> None:
        self.spec = METRICS[name]

    def make_config(self, tmp_path: Path) -> BaseModel:
        return self.spec.config(**OPTIONS.get(self.spec.name, {}))

    def make_context(self, tmp_path: Path) -> BuildContext:
        return BuildContext(recipe_dir=tmp_path, input=InputSpec(channels=3))

    def make_samples(self, tmp_path: Path) -> MetricBatch:
        return make_pictures(176 if self.spec.name == "ms-ssim" else 32)

    def entry_point(self) -> str | None:
        return "latentkit.builtin"


@pytest.mark.parametrize("name", METRICS)
def test_core_s_own_metrics_keep_the_contract(name: str, tmp_path: Path) -> None:
    assert find_failures(CoreContract(name), tmp_path) == {}

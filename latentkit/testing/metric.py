"""Checks for metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentkit.contracts import (
    LatentLayout,
    Measured,
    Metric,
    MetricBatch,
    MetricSetting,
    MetricSpec,
    Moments,
    NamedSpec,
)
from latentkit.testing.plugin import PluginContract

NUM_SAMPLES = 6
DOWNSCALE = 8


class MetricContract(PluginContract):
    """Checks that every `Metric` must pass.

    Set `spec`; override `make_samples` for values that aren't images.
    """

    spec_type: ClassVar[type[NamedSpec]] = MetricSpec
    protocols: ClassVar[tuple[type, ...]] = (Metric,)

    spec: MetricSpec

    tolerance: float = 1e-5
    """Largest difference, absolute and relative, that batches of other sizes may make."""

    # ------------------------------------------------------------ what a plugin author overrides

    def make_samples(self, tmp_path: Path) -> MetricBatch:
        """Six samples in one batch: unless overridden random images (6, 3, 32, 32) in [-1, 1],
        reconstructions near them, and a gaussian posterior (6, 4, 4, 4).
        """
        return make_pictures(32)

    def make_setting(self, samples: MetricBatch) -> MetricSetting:
        """The setting that `start` gets for these samples."""
        channels = samples.latents.shape[1]
        layout = LatentLayout("latent", "gaussian", "CHW", channels, DOWNSCALE)
        return MetricSetting((-1.0, 1.0), layout, "the posterior's mean", len(samples.positions))

    # ------------------------------------------------------------ checks

    def test_figures_are_numbers_with_their_protocol(self, tmp_path: Path) -> None:
        """Each figure is a number and says how it was measured; tables are JSON-like."""
        found = self._measure(tmp_path, [NUM_SAMPLES])
        assert (
            found.figures or found.tables
        ), "finish gave neither a figure nor a table; expected at least one"
        for name, figure in found.figures.items():
            wrong = f"figure {name!r}: value {figure.value!r}"
            assert isinstance(figure.value, float), f"{wrong}; expected a float"
            assert not math.isnan(figure.value), f"{wrong}; expected a number"
            assert figure.protocol.strip(), (
                f"figure {name!r}: protocol is empty; state everything that another program must do"
                " alike to get a comparable value"
            )
        try:
            json.dumps(found.tables)
        except TypeError as error:
            raise AssertionError(f"tables can't be written as JSON: {error}") from error

    def test_better_is_what_the_spec_says(self, tmp_path: Path) -> None:
        """The figure with the metric's own name has the `better` of the spec: a training run keeps
        its best checkpoint by it.
        """
        found = self._measure(tmp_path, [NUM_SAMPLES])
        own = found.figures[""].better if "" in found.figures else ""
        assert own == self.spec.better, (
            f"the spec says better={self.spec.better!r}, the figure {own!r}; they must agree"
        )

    def test_there_is_a_number_for_each_sample_or_none(self, tmp_path: Path) -> None:
        """`per_sample` has a float64 for each sample, under the names of figures."""
        found = self._measure(tmp_path, [NUM_SAMPLES])
        for name, values in found.per_sample.items():
            got, wanted = f"{values.dtype} {values.shape}", f"float64 ({NUM_SAMPLES},)"
            assert got == wanted, f"per_sample[{name!r}]: {got}; expected {wanted}"
            assert name in found.figures, f"per_sample[{name!r}] has no figure of that name"

    def test_batches_of_other_sizes_change_nothing(self, tmp_path: Path) -> None:
        """Samples one by one, in uneven batches and all at once give the same figures; a mean of
        batch means would not.
        """
        whole = self._measure(tmp_path, [NUM_SAMPLES])
        for sizes in ([1] * NUM_SAMPLES, [NUM_SAMPLES - 1, 1]):
            found = self._measure(tmp_path, sizes)
            assert found.figures.keys() == whole.figures.keys(), (
                f"batches of {sizes}: figures {sorted(found.figures)}, at once"
                f" {sorted(whole.figures)}"
            )
            for name, figure in found.figures.items():
                assert self._are_near(figure.value, whole.figures[name].value), (
                    f"figure {name!r}: {figure.value} with batches of {sizes},"
                    f" {whole.figures[name].value} at once; average over samples, not batches"
                )

    def test_a_sample_s_number_is_its_own(self, tmp_path: Path) -> None:
        """Samples in reverse order give the same `per_sample` values in reverse order."""
        forward = self._measure(tmp_path, [NUM_SAMPLES])
        backward = self._measure(tmp_path, [2] * (NUM_SAMPLES // 2), backwards=True)
        for name, values in forward.per_sample.items():
            assert np.allclose(
                values, backward.per_sample[name][::-1], self.tolerance, self.tolerance
            ), f"per_sample[{name!r}] depends on the order of samples, or on their batch"

    def test_start_forgets_what_came_before(self, tmp_path: Path) -> None:
        """A metric that is started again gives the same figures: one object measures every
        evaluation of a training run.
        """
        metric: Metric = self.build(tmp_path)
        samples = self.make_samples(tmp_path)
        first, second = (self._run(metric, samples, [NUM_SAMPLES]) for _ in range(2))
        values = [
            {name: one.value for name, one in found.figures.items()} for found in (first, second)
        ]
        assert values[0] == values[1], f"first {values[0]}, started again {values[1]}"
        lengths = {name: len(one) for name, one in second.per_sample.items()}
        assert set(lengths.values()) <= {NUM_SAMPLES}, (
            f"started again, per_sample has {lengths} numbers for {NUM_SAMPLES} samples: begin with"
            " new lists in start"
        )

    def test_what_it_looks_at_stays(self, tmp_path: Path) -> None:
        """A metric changes none of the tensors it is given: the next metric gets the same ones."""
        samples = self.make_samples(tmp_path)
        before = [tensor.clone() for tensor in tensors_of(samples)]
        metric: Metric = self.build(tmp_path)
        metric.start(self.make_setting(samples))
        metric.add(samples)
        metric.finish()
        same = all(map(torch.equal, before, tensors_of(samples)))
        assert same, "the tensors of the batch were changed in place; work on copies"

    # ------------------------------------------------------------ for the checks

    def _measure(self, tmp_path: Path, sizes: Sequence[int], backwards: bool = False) -> Measured:
        metric: Metric = self.build(tmp_path)
        return self._run(metric, self.make_samples(tmp_path), sizes, backwards)

    def _run(
        self, metric: Metric, samples: MetricBatch, sizes: Sequence[int], backwards: bool = False
    ) -> Measured:
        """Measure the samples in batches of these sizes."""
        numbers = list(range(NUM_SAMPLES))[:: -1 if backwards else 1]
        metric.start(self.make_setting(samples))
        for size in sizes:
            metric.add(take_samples(samples, numbers[:size]))
            numbers = numbers[size:]
        return metric.finish()

    def _are_near(self, one: float, other: float) -> bool:
        return one == other or math.isclose(
            one, other, rel_tol=self.tolerance, abs_tol=self.tolerance
        )


def make_pictures(side: int) -> MetricBatch:
    """Six random images (6, 3, side, side) in [-1, 1], what they are decoded to, and their
    posteriors.
    """
    draw = torch.Generator().manual_seed(0)
    inputs = torch.rand((NUM_SAMPLES, 3, side, side), generator=draw) * 2 - 1
    errors = torch.rand(inputs.shape, generator=draw) - 0.5
    weights = torch.linspace(0.1, 0.3, NUM_SAMPLES).view(-1, 1, 1, 1)
    shape = (NUM_SAMPLES, 4, side // DOWNSCALE, side // DOWNSCALE)
    moments = Moments(torch.randn(shape, generator=draw), torch.randn(shape, generator=draw) - 2)
    return MetricBatch(
        list(range(NUM_SAMPLES)),
        moments.mean,
        moments,
        inputs,
        inputs + errors * weights,
        seed=3,
        decode=_decode,
    )


def _decode(latents: Tensor) -> Tensor:
    """Raw latents (N, 4, h, w) as images (N, 3, 8 h, 8 w)."""
    return interpolate(latents[:, :3].tanh(), scale_factor=DOWNSCALE)


def take_samples(samples: MetricBatch, numbers: Sequence[int]) -> MetricBatch:
    """Return a batch of the samples with these numbers, in this order."""

    def take(tensor: Tensor) -> Tensor:
        return tensor[list(numbers)]

    moments = samples.moments
    return MetricBatch(
        [samples.positions[number] for number in numbers],
        take(samples.latents),
        None if moments is None else Moments(take(moments.mean), take(moments.logvar)),
        None if samples.inputs is None else take(samples.inputs),
        None if samples.output is None else take(samples.output),
        samples.is_draw,
        samples.seed,
        samples.decode,
    )


def tensors_of(samples: MetricBatch) -> Iterator[Tensor]:
    """Iterate over all tensors of a batch."""
    moments = samples.moments
    held = (samples.latents, samples.inputs, samples.output)
    yield from (tensor for tensor in held if tensor is not None)
    yield from () if moments is None else (moments.mean, moments.logvar)

"""Checks for modalities."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import (
    BuildContext,
    InputSpec,
    Modality,
    ModalitySpec,
    NamedSpec,
    Prepared,
    Sample,
)
from latentkit.errors import LatentkitError, SampleError
from latentkit.testing.plugin import PluginContract, find_unplain

NUM_THREADS = 8
RANGE_SLACK = 1e-5
"""How far a value may lie outside the range, in units of its width."""

MEMORY_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])/[\w.-]+/|\b[A-Za-z]:\\")

View = tuple[str, str, str, dict[str, Tensor]]
"""View, bucket, geometry as JSON, tensors by name."""


class _UsedMemory:
    """Memory whose arrays contain old values, like the reused memory of an earlier batch."""

    def get(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        return np.full(shape, 77, dtype)


class ModalityContract(PluginContract, ABC):
    """Checks that every `Modality` must pass.

    Set `spec` and `input` (as an encoder would declare it), and override `make_samples`.

    If the modality supports them, use a config with several views, and samples of several shapes.
    """

    spec_type: ClassVar[type[NamedSpec]] = ModalitySpec
    protocols: ClassVar[tuple[type, ...]] = (Modality,)

    input: InputSpec = InputSpec(channels=3)
    """Input of the encoder that the modality prepares for."""
    axes: str = ""
    """One letter per axis of a prepared tensor; empty: `input.axes`."""

    @abstractmethod
    def make_samples(self, tmp_path: Path) -> Sequence[Sample]:
        """Return at least two good samples, small and different. A test may call this several
        times, and expects the same result.
        """

    def make_bad_sample(self, tmp_path: Path) -> Sample | None:
        """Return a sample that can't be used; None if all media are good.

        For each kind of damage in your format, add a further subclass.
        """
        return Sample("bad", b"\x00 no media of any kind \xff")

    def make_context(self, tmp_path: Path) -> BuildContext:
        """Return the context for `build`: a folder, a seed, and the encoder's input."""
        return BuildContext(recipe_dir=tmp_path, input=self.input)

    def make_modality(self, tmp_path: Path) -> Modality:
        """Return the modality under test."""
        modality: Modality = self.build(tmp_path)
        return modality

    # ------------------------------------------------------------ views and buckets

    def test_views_are_those_of_the_config(self, tmp_path: Path) -> None:
        """Every sample has each view of the config's `views` once and in that order, or the one
        view "plain" without that option.
        """
        config = self.make_config(tmp_path)
        expected = list(getattr(config, "views", ["plain"]))
        modality = self.spec.build(config, self.make_context(tmp_path))
        for sample in self.make_samples(tmp_path):
            got = [prepared.view for prepared in modality.prepare(sample)]
            assert (
                got == expected
            ), f"sample {sample.key!r} has the views {got}, expected {expected}"

    def test_a_bucket_is_a_shape(self, tmp_path: Path) -> None:
        """Tensors with equal shapes have the same bucket name, and tensors with different shapes
        have
        different names: the rows of a bucket form batches.
        """
        for one in (views := self.prepare_all(self.make_modality(tmp_path), tmp_path)):
            for other in views:
                same_shape = shapes_of(one) == shapes_of(other)
                text = (
                    f"buckets {one.bucket!r} and {other.bucket!r} hold {shapes_of(one)} and"
                    f" {shapes_of(other)}"
                )
                assert (
                    one.bucket == other.bucket
                ) == same_shape, f"{text}: make the name from the shape, such as '256x192'"

    def test_geometry_is_json_like(self, tmp_path: Path) -> None:
        """Geometry maps texts to scalars or lists of scalars, because it becomes columns of a
        table.
        """
        views = self.prepare_all(self.make_modality(tmp_path), tmp_path)
        wrong = {name for prepared in views for name in find_unplain(prepared.geometry)}
        assert not wrong, f"not a number, text, bool, None or list of those: {sorted(wrong)}"

    # ------------------------------------------------------------ tensors

    def test_tensors_are_float32_on_the_cpu(self, tmp_path: Path) -> None:
        """Prepared tensors are float32 (int64 for tokens) and on the CPU; the encoder casts and
        moves whole batches.
        """
        found = {f"{tensor.dtype} on {tensor.device}" for tensor in self.values(tmp_path)}
        fits = found in ({"torch.float32 on cpu"}, {"torch.int64 on cpu"})
        assert fits, f"tensors are {sorted(found)}: finish with .to('cpu', torch.float32)"

    def test_tensors_have_the_encoders_channels(self, tmp_path: Path) -> None:
        """A tensor has one axis for each letter of `axes`, and as many channels as the encoder
        takes.
        """
        axes, channels = self.axes or self.input.axes, self.input.channels
        for tensor in self.values(tmp_path):
            fits = tensor.ndim == len(axes) and (
                "C" not in axes or tensor.shape[axes.index("C")] == channels
            )
            assert fits, (
                f"shape {tuple(tensor.shape)}; expected axes {axes} with C = {channels}: read"
                " context.input.channels"
            )

    def test_tensors_have_sizes_that_the_encoder_takes(self, tmp_path: Path) -> None:
        """Each size fits the encoder's rule for its axis."""
        for tensor in self.values(tmp_path):
            for axis, size in zip(self.axes or self.input.axes, tensor.shape, strict=False):
                rule = self.input.sizes.get(axis)
                assert rule is None or rule.allows(
                    size
                ), f"{axis} is {size}, the encoder takes {rule}: read context.input.sizes"

    def test_tensors_are_finite(self, tmp_path: Path) -> None:
        """No value is nan or infinite."""
        finite = all(bool(tensor.isfinite().all()) for tensor in self.values(tmp_path))
        assert (
            finite
        ), "nan or infinity in a prepared tensor: raise SampleError for media that has such values"

    def test_tensors_are_in_the_encoders_range(self, tmp_path: Path) -> None:
        """No value lies outside the encoder's range."""
        low, high = self.input.range
        slack = RANGE_SLACK * (high - low)
        for tensor in self.values(tmp_path):
            kept = tensor[tensor.isfinite()]
            inside = bool(((kept >= low - slack) & (kept <= high + slack)).all())
            assert inside, (
                f"values from {float(kept.min())} to {float(kept.max())}; the encoder's range is"
                f" {low} to {high}"
            )

    def test_tensors_follow_the_encoders_range(self, tmp_path: Path) -> None:
        """For an encoder with a range twice as wide, the values are scaled to it, or the modality
        refuses the encoder.
        """
        config, context = self.make_config(tmp_path), self.make_context(tmp_path)
        low, high = self.input.range
        wider = replace(self.input, range=(low + 1.0, low + 1.0 + 2 * (high - low)))
        try:
            stretched = self.spec.build(config, replace(context, input=wider))
        except LatentkitError:
            return
        before = self.prepare_all(self.spec.build(config, context), tmp_path)
        for one, other in zip(before, self.prepare_all(stretched, tmp_path), strict=True):
            for name, tensor in tensors_of(one).items():
                expected = (tensor - low) * 2 + low + 1.0
                close = torch.allclose(
                    tensors_of(other)[name],
                    expected,
                    rtol=1e-4,
                    atol=1e-4 * (high - low),
                    equal_nan=True,
                )
                assert close, (
                    "values don't follow context.input.range: map the media's lowest and highest"
                    " values to its two ends"
                )

    def test_a_mapping_of_tensors_has_a_mask(self, tmp_path: Path) -> None:
        """If a prepared row is several tensors by name, one of them is "mask": 1 where a value
        counts, 0 in the padding.
        """
        for prepared in self.prepare_all(self.make_modality(tmp_path), tmp_path):
            has_mask = isinstance(prepared.tensor, Tensor) or "mask" in prepared.tensor
            assert has_mask, (
                f"tensors {sorted(tensors_of(prepared))} without 'mask': add one, of ones if all"
                " values count"
            )

    def test_a_mask_covers_the_first_axes(self, tmp_path: Path) -> None:
        """A mask holds zeros and ones, counts something, and has the sizes of the first axes after
        the channels: (L,) of (C, L).
        """
        axes = self.axes or self.input.axes
        for prepared in self.prepare_all(self.make_modality(tmp_path), tmp_path):
            if isinstance(prepared.tensor, Tensor) or "mask" not in prepared.tensor:
                continue
            mask = prepared.tensor["mask"]
            binary = bool(((mask == 0) | (mask == 1)).all()) and bool(mask.any())
            assert binary, (
                "a mask of other values than 0 and 1, or of nothing but 0: raise SampleError for"
                " media of which nothing counts"
            )
            for tensor in tensors_of(prepared).values():
                sizes = [
                    size for axis, size in zip(axes, tensor.shape, strict=False) if axis != "C"
                ]
                fits = tuple(mask.shape) == tuple(sizes[: mask.ndim]) and mask.ndim
                assert fits, (
                    f"mask of {tuple(mask.shape)} beside a tensor of {tuple(tensor.shape)}: give it"
                    " the sizes after the channels"
                )

    def test_several_tensors_are_for_encoders_that_take_them(self, tmp_path: Path) -> None:
        """A row has one tensor in addition to its mask, unless the encoder's input has
        `takes_mask`: other encoders get only that tensor.
        """
        for prepared in self.prepare_all(self.make_modality(tmp_path), tmp_path):
            names = sorted(tensors_of(prepared))
            fits = len(names) == 1 or self.input.takes_mask
            assert fits, (
                f"tensors {names}, and the encoder takes one: return several only if"
                " context.input.takes_mask is true"
            )

    # ------------------------------------------------------------ the same, always

    def test_a_sample_prepared_again_is_equal(self, tmp_path: Path) -> None:
        """Preparing a sample twice gives the same views, bit for bit."""
        modality = self.make_modality(tmp_path)
        same = are_equal(self.prepare_all(modality, tmp_path), self.prepare_all(modality, tmp_path))
        assert same, (
            "a second preparation differs: draw from a generator seeded by context.seed and"
            " sample.key"
        )

    def test_two_builds_prepare_equal_tensors(self, tmp_path: Path) -> None:
        """The same config and context give the same views in every process."""
        first, second = self.build_twice(tmp_path)
        same = are_equal(self.prepare_all(first, tmp_path), self.prepare_all(second, tmp_path))
        assert same, "two builds of one config differ: depend on config and context alone"

    def test_a_pickled_copy_prepares_equal_tensors(self, tmp_path: Path) -> None:
        """A pickled copy, as a worker in another process gets it, prepares the same views."""
        modality = self.make_modality(tmp_path)
        copy = pickle.loads(pickle.dumps(modality))
        same = are_equal(self.prepare_all(copy, tmp_path), self.prepare_all(modality, tmp_path))
        assert same, "a pickled copy differs: look at __getstate__ and __reduce__"

    def test_threads_prepare_equal_tensors(self, tmp_path: Path) -> None:
        """Preparing in 8 threads at once gives what one thread gives, bit for bit."""
        modality, samples = self.make_modality(tmp_path), list(self.make_samples(tmp_path))
        expected = [list(modality.prepare(sample)) for sample in samples]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            found = list(
                pool.map(lambda sample: list(modality.prepare(sample)), samples * NUM_THREADS)
            )
        same = all(
            are_equal(expected[number % len(samples)], views) for number, views in enumerate(found)
        )
        assert same, "threads got other tensors: keep buffers and open media inside prepare()"

    def test_rows_without_seeking_are_equal(self, tmp_path: Path) -> None:
        """If the modality has `without_seeking`, that modality prepares the same views: a seek
        doesn't change what is read.
        """
        modality = self.make_modality(tmp_path)
        make = getattr(modality, "without_seeking", None)
        if make is None:
            return
        same = are_equal(self.prepare_all(make(), tmp_path), self.prepare_all(modality, tmp_path))
        assert same, "without_seeking() prepares other tensors: a seek must not change what is read"

    def test_rows_prepared_into_memory_are_equal(self, tmp_path: Path) -> None:
        """If `prepare` takes `memory`, it prepares the same views in it, whatever the memory
        contained before.
        """
        modality = self.make_modality(tmp_path)
        prepare: Callable[..., Iterable[Prepared]] = modality.prepare
        if "memory" not in inspect.signature(prepare).parameters:
            return
        samples = self.make_samples(tmp_path)
        found = [view for sample in samples for view in prepare(sample, memory=_UsedMemory())]
        same = are_equal(self.prepare_all(modality, tmp_path), found)
        assert same, "memory= gives other views: fill all of the memory, at each call"

    # ------------------------------------------------------------ media that is no good

    def test_bad_media_raises_sample_error(self, tmp_path: Path) -> None:
        """Media that can't be used raises `SampleError`, whose text becomes the reason in the
        ledger. Any other error ends the run.
        """
        bad = self.make_bad_sample(tmp_path)
        if bad is None:
            return
        raised = raised_by(self.make_modality(tmp_path), bad)
        assert isinstance(
            raised, SampleError
        ), f"bad media gave {raised!r}: raise SampleError('what is wrong with it') from err"

    def test_reason_of_bad_media_is_the_same_in_every_run(self, tmp_path: Path) -> None:
        """The reason contains no memory address and no path, and is the same for the same media in
        another folder and process.
        """
        reasons = []
        for number, modality in enumerate(self.build_twice(tmp_path)):
            folder = tmp_path / f"run-{number}"
            folder.mkdir()
            bad = self.make_bad_sample(folder)
            raised = None if bad is None else raised_by(modality, bad)
            reasons.append(str(raised) if isinstance(raised, SampleError) else "")
        assert reasons[0] == reasons[1], (
            f"two reasons for the same damage: {reasons[0]!r}, {reasons[1]!r}; leave out times,"
            " counters, paths"
        )
        changing = [
            found.group()
            for pattern in (MEMORY_ADDRESS, ABSOLUTE_PATH)
            if (found := pattern.search(reasons[0]))
        ]
        assert (
            not changing
        ), f"the reason {reasons[0]!r} names {changing}, which differ between runs or machines"

    def test_media_out_of_reach_raises_os_error(self, tmp_path: Path) -> None:
        """A file that can't be read raises `OSError`. It is retried, and then ends the run, because
        it isn't the sample's fault.
        """
        raised = raised_by(self.make_modality(tmp_path), Sample("gone", tmp_path / "gone"))
        assert isinstance(
            raised, OSError
        ), f"a missing file gave {raised!r}: let the OSError of sample.read() through"

    # ------------------------------------------------------------ looking at tensors

    def test_render_writes_a_file(self, tmp_path: Path) -> None:
        """`render` writes rows of different lengths to the given path, and doesn't change the
        tensors.
        """
        modality = self.make_modality(tmp_path)
        first, *rest = [
            tensor
            for prepared in self.prepare_all(modality, tmp_path)
            for tensor in tensors_of(prepared).values()
        ]
        suffix = getattr(modality, "preview_suffix", ".png")
        assert suffix.startswith(
            "."
        ), f"preview_suffix is {suffix!r}: begin it with a dot, as in '.wav'"
        before, path = first.clone(), tmp_path / f"preview{suffix}"
        modality.render([[first, first], [first], *([tensor] for tensor in rest)], path)
        num_bytes = path.stat().st_size if path.is_file() else 0
        assert num_bytes, "render left no file, or an empty one, at the path it was given"
        assert is_same(first, before), "render changed a tensor: work on a copy"

    def test_metrics_are_names(self, tmp_path: Path) -> None:
        """`metrics` is a sequence of names of metrics; it may be empty."""
        metrics = self.make_modality(tmp_path).metrics
        fits = not isinstance(metrics, str) and all(
            isinstance(name, str) and name for name in metrics
        )
        assert fits, f"metrics is {metrics!r}: give a tuple of names, such as ('psnr',)"

    # ------------------------------------------------------------ for the checks

    def prepare_all(self, modality: Modality, tmp_path: Path) -> list[Prepared]:
        """Prepare all samples and return all views."""
        return [
            prepared
            for sample in self.make_samples(tmp_path)
            for prepared in modality.prepare(sample)
        ]

    def values(self, tmp_path: Path) -> list[Tensor]:
        """Prepare all samples and return all tensors, without masks."""
        views = self.prepare_all(self.make_modality(tmp_path), tmp_path)
        return [tensor for prepared in views for tensor in tensors_of(prepared).values()]


def tensors_of(prepared: Prepared) -> dict[str, Tensor]:
    """Return the tensors of one view by name ("" for a single one), without the mask."""
    named = prepared.tensor if isinstance(prepared.tensor, Mapping) else {"": prepared.tensor}
    return {name: tensor for name, tensor in named.items() if name != "mask"}


def shapes_of(prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a view's tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors_of(prepared).items()}


def are_equal(first: Iterable[Prepared], second: Iterable[Prepared]) -> bool:
    """Return whether two lists of views agree in everything, tensors bit for bit."""
    pairs = [(facts_of(one), facts_of(other)) for one, other in zip(first, second, strict=True)]
    return all(
        one[:3] == other[:3] and one[3].keys() == other[3].keys() for one, other in pairs
    ) and all(
        is_same(tensor, other[3][name]) for one, other in pairs for name, tensor in one[3].items()
    )


def facts_of(prepared: Prepared) -> View:
    """Return everything about a view that must be equal when the sample is prepared again."""
    geometry = json.dumps(dict(prepared.geometry), default=repr, sort_keys=True)
    named = prepared.tensor if isinstance(prepared.tensor, Mapping) else {"": prepared.tensor}
    return prepared.view, prepared.bucket, geometry, dict(named)


def is_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are equal; nan equals nan."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def raised_by(modality: Modality, sample: Sample) -> BaseException | None:
    """Return the exception that preparing a sample raises; None if there is none."""
    try:
        list(modality.prepare(sample))
    except Exception as error:  # noqa: BLE001 (plugin boundary)
        return error
    return None

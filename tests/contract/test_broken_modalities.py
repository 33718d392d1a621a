"""Every check for modalities fails for a modality that is broken in that one way, and none for good
ones.
"""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from pydantic import Field
from torch import Tensor

from latentkit.contracts import (
    BuildContext,
    Config,
    InputSpec,
    ModalitySpec,
    Prepared,
    RowMemory,
    Sample,
    SizeRule,
)
from latentkit.errors import RecipeError, SampleError
from latentkit.testing import ModalityContract, PluginContract, check_names, find_failures

Values = npt.NDArray[Any]


class RowConfig(Config):
    views: list[str] = Field(["plain", "reversed"], description="plain, reversed")


class Rows:
    """A good modality: the bytes of a file as a row of numbers, (1, L), and the row from its end to
    its start.
    """

    metrics: Any = ("psnr",)

    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        assert context.input is not None
        self.views = config.views
        self.range = context.input.range

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        row = self.row(sample)
        for view in self.names(sample):
            tensor = self.finish(row.flip(-1) if view == "reversed" else row)
            yield Prepared(view, self.bucket(sample, tensor), tensor, self.geometry(sample))

    def row(self, sample: Sample) -> Tensor:
        values = self.read(sample)
        if len(values) < 2:
            raise self.refusal(sample)
        low, high = self.range
        return torch.tensor([list(values)], dtype=torch.float32) / 255 * (high - low) + low

    def read(self, sample: Sample) -> bytes:
        return sample.read()

    def refusal(self, sample: Sample) -> Exception:
        return SampleError("shorter than 2 bytes")

    def names(self, sample: Sample) -> Sequence[str]:
        return self.views

    def finish(self, row: Tensor) -> Any:
        return row

    def bucket(self, sample: Sample, tensor: Any) -> str:
        return "x".join(map(str, tensor.shape))

    def geometry(self, sample: Sample) -> dict[Any, Any]:
        return {"length": len(sample.key), "box": [0, 1.5], "flip": False}

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.write_text("\n".join(str(tensor.tolist()) for row in tensors for tensor in row))


class RowsContract(ModalityContract):
    input = InputSpec(channels=1, sizes={"L": SizeRule(multiple=2)})
    axes = "CL"

    def __init__(self, build: Callable[[Any, BuildContext], Any]) -> None:
        self.spec = ModalitySpec("rows", "rows of bytes", RowConfig, build)

    def make_samples(self, tmp_path: Path) -> list[Sample]:
        path = tmp_path / "longest"
        path.write_bytes(bytes([0, 255, 7, 128]))
        return [
            Sample("one", bytes([255, 0])),
            Sample("two", bytes([3, 4])),
            Sample("longest", path),
        ]

    def make_bad_sample(self, tmp_path: Path) -> Sample:
        path = tmp_path / "short"
        path.write_bytes(b"x")
        return Sample("short", path)

    def entry_point(self) -> None:
        """Declared here only."""


class RowsWithAMask(Rows):
    def finish(self, row: Tensor) -> Any:
        return {"values": row, "mask": torch.ones(row.shape[1])}

    def bucket(self, sample: Sample, tensor: Any) -> str:
        return str(tensor["values"].shape)


class RowsToListenTo(Rows):
    """Good, too: writes sounds."""

    preview_suffix = ".wav"

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        assert path.suffix == ".wav"
        super().render(tensors, path)


class RowsWithoutSeeking(Rows):
    """Good, too: has a form of its own for checks."""

    def without_seeking(self) -> Rows:
        return self


class RowsIntoMemory(Rows):
    """Good, too: prepares where it is told to."""

    def prepare(self, sample: Sample, memory: RowMemory | None = None) -> Iterator[Prepared]:
        for view in super().prepare(sample):
            assert isinstance(view.tensor, Tensor)
            if memory is None:
                yield view
                continue
            values = memory.get(tuple(view.tensor.shape), np.float32)
            self.fill(values, view.tensor.numpy())
            yield replace(view, tensor=torch.from_numpy(values))

    def fill(self, values: Values, row: Values) -> None:
        values[:] = row


class RowsFromMinusOne(Rows):
    """Good, too: refuses an encoder with another range."""

    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        if self.range != (-1.0, 1.0):
            raise RecipeError("rows are made from -1 to 1")


# ---------------------------------------------------------------- broken in one way each


class SwappedViews(Rows):
    def names(self, sample: Sample) -> Sequence[str]:
        return self.views[::-1]


class RepeatedView(Rows):
    def names(self, sample: Sample) -> Sequence[str]:
        return [*self.views, "plain"]


class FewerViewsOfSome(Rows):
    def names(self, sample: Sample) -> Sequence[str]:
        return self.views[:1] if sample.key == "two" else self.views


class OneBucket(Rows):
    def bucket(self, sample: Sample, tensor: Any) -> str:
        return "all"


class BucketPerSample(Rows):
    def bucket(self, sample: Sample, tensor: Any) -> str:
        return sample.key


class NestedGeometry(Rows):
    def geometry(self, sample: Sample) -> dict[Any, Any]:
        return {"box": {"left": 0}}


class InfiniteGeometry(Rows):
    def geometry(self, sample: Sample) -> dict[Any, Any]:
        return {"aspect": float("inf")}


class DoublePrecision(Rows):
    def finish(self, row: Tensor) -> Any:
        return row.double()


class Elsewhere(torch.Tensor):
    """A tensor that says it is on a GPU."""

    device = torch.device("cuda")


class OnAGpu(Rows):
    def finish(self, row: Tensor) -> Any:
        return row.as_subclass(Elsewhere)


class Stereo(Rows):
    def finish(self, row: Tensor) -> Any:
        return row.repeat(2, 1)


class WithoutChannels(Rows):
    def finish(self, row: Tensor) -> Any:
        return row[0]


class OddLength(Rows):
    def finish(self, row: Tensor) -> Any:
        return row[:, 1:]


class NotANumber(Rows):
    def finish(self, row: Tensor) -> Any:
        return torch.where(row == row.max(), torch.nan, row)


class TooHigh(Rows):
    def finish(self, row: Tensor) -> Any:
        return row + 0.5 * (self.range[1] - self.range[0])


class AlwaysFromMinusOne(Rows):
    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.range = (-1.0, 1.0)


class WithoutAMask(RowsWithAMask):
    def finish(self, row: Tensor) -> Any:
        return {"values": row}


class MaskOfAnotherShape(RowsWithAMask):
    def finish(self, row: Tensor) -> Any:
        return {"values": row, "mask": torch.ones(row.shape)}


class MaskOfNothing(RowsWithAMask):
    def finish(self, row: Tensor) -> Any:
        return {"values": row, "mask": torch.zeros(row.shape[1])}


class MaskOfShares(RowsWithAMask):
    def finish(self, row: Tensor) -> Any:
        return {"values": row, "mask": torch.full(row.shape[1:], 0.5)}


class TwoTensors(RowsWithAMask):
    def finish(self, row: Tensor) -> Any:
        return {"values": row, "again": row, "mask": torch.ones(row.shape[1])}


class DrawnMask(RowsWithAMask):
    """A mask that is another one in a second preparation."""

    count = itertools.count()

    def finish(self, row: Tensor) -> Any:
        mask = torch.zeros(row.shape[1])
        mask[next(self.count) % 4 // 2] = 1
        return {"values": row, "mask": mask}


class WithoutADot(Rows):
    preview_suffix = "wav"


class AnotherWayRoundLater(Rows):
    """Any preparation of a sample but the first."""

    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.seen: set[str] = set()

    def row(self, sample: Sample) -> Tensor:
        row = super().row(sample)
        is_first = sample.key not in self.seen
        self.seen.add(sample.key)
        return row if is_first else row.flip(-1)


class NumberOfTheBuild(Rows):
    num_builds = itertools.count()

    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.number = next(self.num_builds)

    def geometry(self, sample: Sample) -> dict[Any, Any]:
        return {"build": self.number}


class Unpicklable(Rows):
    def __init__(self, config: RowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.lock = threading.Lock()


class OtherRangeByPickle(Rows):
    def __setstate__(self, state: dict[str, Any]) -> None:
        self.views, self.range = state["views"], (0.0, 1.0)


class OneBufferForAllThreads(Rows):
    def row(self, sample: Sample) -> Tensor:
        self.buffer = super().row(sample)
        time.sleep(0.002)
        return self.buffer


class SeeksElsewhere(Rows):
    """Reads from the end on where it seeks."""

    seeks = True

    def row(self, sample: Sample) -> Tensor:
        return super().row(sample).flip(-1) if self.seeks else super().row(sample)

    def without_seeking(self) -> Rows:
        other = copy.copy(self)
        other.seeks = False
        return other


class LeavesTheEndAsItWas(RowsIntoMemory):
    def fill(self, values: Values, row: Values) -> None:
        values[..., :-1] = row[..., :-1]


class RaisesValueError(Rows):
    def refusal(self, sample: Sample) -> Exception:
        return ValueError("too short")


class GivesSomethingElse(Rows):
    def read(self, sample: Sample) -> bytes:
        found = super().read(sample)
        return found if len(found) >= 2 else bytes(2)


class CountsInReasons(Rows):
    count = itertools.count()

    def refusal(self, sample: Sample) -> Exception:
        return SampleError(f"bad sample number {next(self.count)}")


class AddressInReasons(Rows):
    def refusal(self, sample: Sample) -> Exception:
        return SampleError("cannot read <_io.BytesIO object at 0x7f3a5c0d2e80>")


class PathInReasons(Rows):
    def refusal(self, sample: Sample) -> Exception:
        return SampleError(f"cannot read {sample.media}")


class SamePathInReasons(Rows):
    def refusal(self, sample: Sample) -> Exception:
        return SampleError("cannot read /home/ada/photos/short.raw")


class BlamesTheSample(Rows):
    def read(self, sample: Sample) -> bytes:
        try:
            return super().read(sample)
        except OSError as error:
            raise SampleError("can't be read") from error


class RendersNothing(Rows):
    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Forgets to."""


class RendersAnEmptyFile(Rows):
    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        path.touch()


class RendersInPlace(Rows):
    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        tensors[0][0].mul_(127.5)
        super().render(tensors, path)


class OneTextOfMetrics(Rows):
    metrics = "psnr"


BROKEN: dict[str, list[type[Rows]]] = {
    "test_views_are_those_of_the_config": [SwappedViews, RepeatedView, FewerViewsOfSome],
    "test_a_bucket_is_a_shape": [OneBucket, BucketPerSample],
    "test_geometry_is_json_like": [NestedGeometry, InfiniteGeometry],
    "test_tensors_are_float32_on_the_cpu": [DoublePrecision, OnAGpu],
    "test_tensors_have_the_encoders_channels": [Stereo, WithoutChannels],
    "test_tensors_have_sizes_that_the_encoder_takes": [OddLength],
    "test_tensors_are_finite": [NotANumber],
    "test_tensors_are_in_the_encoders_range": [TooHigh],
    "test_tensors_follow_the_encoders_range": [AlwaysFromMinusOne],
    "test_a_mapping_of_tensors_has_a_mask": [WithoutAMask],
    "test_a_mask_covers_the_first_axes": [MaskOfAnotherShape, MaskOfNothing, MaskOfShares],
    "test_several_tensors_are_for_encoders_that_take_them": [TwoTensors],
    "test_a_sample_prepared_again_is_equal": [AnotherWayRoundLater],
    "test_two_builds_prepare_equal_tensors": [NumberOfTheBuild],
    "test_a_pickled_copy_prepares_equal_tensors": [Unpicklable, OtherRangeByPickle],
    "test_threads_prepare_equal_tensors": [OneBufferForAllThreads],
    "test_rows_without_seeking_are_equal": [SeeksElsewhere],
    "test_rows_prepared_into_memory_are_equal": [LeavesTheEndAsItWas],
    "test_bad_media_raises_sample_error": [RaisesValueError, GivesSomethingElse],
    "test_reason_of_bad_media_is_the_same_in_every_run": [
        CountsInReasons,
        AddressInReasons,
        PathInReasons,
        SamePathInReasons,
    ],
    "test_media_out_of_reach_raises_os_error": [BlamesTheSample],
    "test_render_writes_a_file": [RendersNothing, RendersAnEmptyFile, RendersInPlace, WithoutADot],
    "test_metrics_are_names": [OneTextOfMetrics],
}
ALSO: dict[type[Rows], set[str]] = {AnotherWayRoundLater: {"test_threads_prepare_equal_tensors"}}
"""Checks that a double can't help failing besides its own: threads prepare again, too."""


@pytest.mark.parametrize(
    ("check", "double"),
    [(check, double) for check, doubles in BROKEN.items() for double in doubles],
)
def test_a_modality_broken_in_one_way_fails_the_check_for_it(
    check: str, double: type[Rows], tmp_path: Path
) -> None:
    assert set(find_failures(RowsContract(double), tmp_path)) == {check} | ALSO.get(double, set())


def test_a_mask_that_changes_is_another_row(tmp_path: Path) -> None:
    # Six views are prepared, and the two masks take turns in pairs: the seventh view has the other
    # one.
    failures = set(find_failures(RowsContract(DrawnMask), tmp_path))
    assert failures <= {check for check in BROKEN if "equal" in check}
    assert "test_a_sample_prepared_again_is_equal" in failures


@pytest.mark.parametrize(
    "good",
    [Rows, RowsWithAMask, RowsFromMinusOne, RowsToListenTo, RowsWithoutSeeking, RowsIntoMemory],
)
def test_a_good_modality_passes_every_check(good: type[Rows], tmp_path: Path) -> None:
    assert find_failures(RowsContract(good), tmp_path) == {}


def test_a_modality_that_lacks_a_member_breaks_its_protocol(tmp_path: Path) -> None:
    assert "test_build_gives_what_the_hook_promises" in find_failures(
        RowsContract(lambda config, context: object()), tmp_path
    )


def test_every_check_for_modalities_is_proved() -> None:
    assert {*BROKEN, *check_names(PluginContract)} == set(check_names(ModalityContract))

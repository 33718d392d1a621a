"""What is stored can be read: sizes whose latents a fold or statistics per frame don't fit are
refused before anything is encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.contracts import (
    Entry,
    InputSpec,
    LatentLayout,
    Normalization,
    Prepared,
    Sample,
    SizeRule,
)
from latentkit.contracts.encoder_description import readable_input
from latentkit.encoding.encode_source import encode_source
from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
from latentkit.errors import EncoderError
from latentkit.executors.local import LocalExecutor
from latentkit.reading.dataset import open_dataset
from latentkit.reading.posterior import Normalizer
from latentkit.store.local_folder import LocalFolder

PER_FRAME = Normalization([[[[0.5]], [[0.25]], [[0.125]]]], [[[[2.0]], [[4.0]], [[8.0]]]])
"""One channel, three latent frames."""


@pytest.mark.parametrize(
    ("axis", "rule", "downscale", "normalization", "expected"),
    [
        ("H", SizeRule(8, 0, 8), 8, Normalization(fold={"H": 2}), {16, 32, 48, 64, 80, 96}),
        ("H", SizeRule(8, 0, 8), 8, Normalization(fold={"H": 3}), {24, 48, 72, 96}),
        ("H", SizeRule(16), 8, Normalization(fold={"H": 2}), {16, 32, 48, 64, 80, 96}),
        (
            "H",
            SizeRule(16, 8),
            8,
            Normalization(fold={"H": 2}),
            None,
        ),  # always odd: said with the first latents
        (
            "T",
            SizeRule(4, 1),
            4,
            Normalization(fold={"T": 2}),
            {5, 13, 21, 29, 37, 45, 53, 61, 69, 77, 85, 93},
        ),
        ("T", SizeRule(8, 1), 8, PER_FRAME, {1, 9, 17}),
        ("T", SizeRule(8, 1, maximum=9), 8, PER_FRAME, {1, 9}),
        (
            "H",
            SizeRule(),
            8,
            Normalization(fold={"H": 2}),
            None,
        ),  # the encoder pads: said with the first latents
        ("H", SizeRule(8), 8, Normalization([0.5], [2.0]), None),
    ],
)
def test_rules_are_narrowed_to_sizes_that_can_be_read(
    axis: str,
    rule: SizeRule,
    downscale: int,
    normalization: Normalization,
    expected: set[int] | None,
) -> None:
    axes = {"H": "CHW", "T": "CTHW"}[axis]
    layout = LatentLayout("latent", "gaussian", axes, 1, downscale)
    narrowed = readable_input(InputSpec(3, sizes={axis: rule}, axes=axes), layout, normalization)
    wanted = {size for size in range(1, 100) if rule.allows(size)} if expected is None else expected
    assert {size for size in range(1, 100) if narrowed.sizes[axis].allows(size)} == wanted
    assert set(narrowed.sizes) == {axis}


def test_short_latents_take_the_first_of_the_statistics_and_longer_ones_are_refused() -> None:
    layout = LatentLayout("latent", "gaussian", "CTHW", 1, 8)
    for frames in (1, 2, 3):
        z = torch.randn(2, 1, frames, 2, 2, generator=torch.Generator().manual_seed(frames))
        shift, scale = (
            torch.tensor([0.5, 0.25, 0.125][:frames]),
            torch.tensor([2.0, 4.0, 8.0][:frames]),
        )
        expected = (z - shift.view(1, 1, -1, 1, 1)) * scale.view(1, 1, -1, 1, 1)
        assert torch.equal(PER_FRAME.apply(z, "CTHW"), expected)
        assert torch.equal(Normalizer(PER_FRAME, layout)(z.clone()), expected)
    for call in (lambda z: PER_FRAME.apply(z, "CTHW"), Normalizer(PER_FRAME, layout)):
        with pytest.raises(
            ValueError, match="axis T of size 4 is longer than the shifts and scales, which have 3"
        ):
            call(torch.zeros(2, 1, 4, 2, 2))


class Blocks:
    """An encoder of somebody's plugin: means of 2 x 2 pixels, its latents folded once more, and any
    size taken.
    """

    modality = "image"
    input = InputSpec(channels=3)
    layout = LatentLayout("latent", "deterministic", "CHW", 3, 2)
    normalization = Normalization(0.0, 2.0, {"H": 2, "W": 2})

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        return {"latent": torch.nn.functional.avg_pool2d(batch, 2, ceil_mode=True)}

    def fingerprint(self) -> Mapping[str, str]:
        return {"weights": "none"}


class Squares:
    """Source and modality: a picture of each side."""

    metrics = ()

    def __init__(self, *sides: int) -> None:
        self.sides = sides

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        side = self.sides[int(sample.key)]
        yield Prepared(
            "plain", f"{side}x{side}", torch.linspace(-1, 1, 3 * side * side).view(3, side, side)
        )

    def render(self, tensors: Any, path: Path) -> None:
        """Nothing is previewed."""


def encode(squares: Squares, folder: Path, batch_size: Any) -> Any:
    inputs = EncodeInputs(squares, squares, ["plain"], lambda _: Blocks(), {"encoder.name": "test"})  # type: ignore[arg-type,return-value]
    settings = EncodeSettings(
        dtype="float32",
        batch_size=batch_size,
        unit_size=2,
        threads=torch.get_num_threads(),
        compile=False,
    )
    return encode_source(
        LocalFolder(folder), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )


def test_latents_of_any_encoder_that_could_not_be_read_are_not_stored(tmp_path: Path) -> None:
    assert encode(Squares(8, 12), tmp_path / "good", 2).num_ok == 2
    read = open_dataset(tmp_path / "good")
    assert [tuple(read[place]["latent"].shape) for place in range(2)] == [(12, 2, 2), (12, 3, 3)]
    assert np.isclose(
        float(read[0]["latent"][0, 0, 0]),
        2 * float(torch.linspace(-1, 1, 192)[[0, 1, 8, 9]].mean()),
    )
    refused = (
        r"latents of shape \(3, 5, 5\), axes CHW, could be stored but not read back: axis H of size"
        r" 5 can't be folded by 2"
    )
    with pytest.raises(EncoderError, match=refused):
        encode(Squares(*[10] * 40), tmp_path / "measured", "auto")  # as many as are worth measuring
    assert not (tmp_path / "measured").exists(), "refused before there is a plan"
    with pytest.raises(EncoderError, match=refused):
        encode(Squares(8, 8, 8, 10), tmp_path / "later", 2)
    assert not (tmp_path / "later" / "dataset.json").exists()
    assert len(list((tmp_path / "later" / "units").glob("*"))) <= 1

"""Masks at the size of latents, and what an encoder's latents are held to, whatever their axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentkit.contracts import InputSpec, LatentLayout, Normalization
from latentkit.encoding.batch_tensors import check_layout, encode_batch
from latentkit.errors import EncoderError, PluginError
from latentkit.preparing.stack import stack
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.masks import counted_positions, mask_of, masked_axes, pool_mask, without_mask


@dataclass
class Shapes:
    """An encoder that gives zeros of one shape, and keeps what it was given."""

    axes: str
    shape: tuple[int, ...]
    input: InputSpec
    downscale: Any
    ragged_axis: str | None = None
    own_mask: Tensor | None = None
    normalization: Normalization = field(default_factory=Normalization)
    kind: Any = "deterministic"
    modality: str = "shapes"
    given: Any = None

    def __post_init__(self) -> None:
        self.layout = LatentLayout(
            "latent", self.kind, self.axes, 4, self.downscale, self.ragged_axis
        )

    def encode(self, batch: Any) -> dict[str, Tensor]:
        self.given = batch
        latents = {"indices" if self.kind == "quantised" else "latent": torch.zeros(self.shape)}
        return latents if self.own_mask is None else {**latents, "mask": self.own_mask}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


def masked(*shape: int, lengths: list[int]) -> Mapping[str, Tensor]:
    mask = torch.arange(shape[2]) < torch.tensor(lengths)[:, None]
    return {"clip": torch.zeros(shape), "mask": mask.long()}


def test_a_latent_counts_where_any_of_its_inputs_does() -> None:
    mask = torch.tensor(
        [[1, 1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0, 1, 0], [0] * 8]
    ).bool()
    pooled = pool_mask(mask, [3])
    assert pooled.tolist() == [
        [True, True, False],
        [True, False, False],
        [False, True, True],
        [False] * 3,
    ]
    grid = torch.zeros(1, 4, 6, dtype=torch.bool)
    grid[0, 3, 4] = True
    assert pool_mask(grid, [2, 3]).nonzero().tolist() == [[0, 1, 1]]
    assert torch.equal(pool_mask(grid, [1, 1]), grid)


def test_rows_of_one_mask_share_it_and_its_pooled_one() -> None:
    mask = torch.tensor([1, 1, 1, 1, 1, 0, 0]).bool()
    batch = stack([{"clip": torch.zeros(3, 7), "mask": mask}] * 4, BufferPool(pinned=False))["mask"]
    assert torch.equal(batch, mask.expand(4, 7))
    assert batch.untyped_storage().nbytes() == mask.untyped_storage().nbytes()
    for causal in ([], [True]):
        pooled = pool_mask(batch, [3], causal)
        assert torch.equal(pooled, pool_mask(batch.contiguous(), [3], causal))
        assert pooled.stride(0) == 0


def test_the_first_of_3_k_plus_1_frames_is_a_latent_of_its_own() -> None:
    mask = torch.arange(7) < torch.tensor([0, 1, 2, 4, 5, 7])[:, None]
    counts = pool_mask(mask, [3], [True]).sum(1).tolist()
    assert counts == [0, 1, 2, 2, 3, 3]


def test_a_mask_covers_the_first_axes_or_the_ragged_one() -> None:
    layout = LatentLayout("latent", "gaussian", "CTHW", 4, (4, 8, 8))
    assert [masked_axes(layout, count) for count in (1, 2, 3)] == ["T", "TH", "THW"]
    assert masked_axes(LatentLayout("latent", "gaussian", "CML", 4, 1, "L"), 1) == "L"


def test_counted_positions_are_those_of_the_mask_in_order() -> None:
    values = np.arange(2 * 3 * 4 * 2).reshape(2, 3, 4, 2)
    mask = np.array([[True, False, True, False], [False, False, False, True]])
    expected = np.stack([values[0, :, 0], values[0, :, 2], values[1, :, 3]])
    np.testing.assert_array_equal(counted_positions(values, mask), expected)
    np.testing.assert_array_equal(
        counted_positions(values, np.ones((2, 4, 2), bool)),
        np.moveaxis(values, 1, 3).reshape(-1, 3),
    )


def test_the_bare_tensor_unless_the_encoder_takes_the_mask() -> None:
    batch = masked(2, 1, 8, lengths=[8, 3])
    encoder = Shapes("CL", (2, 4, 2), InputSpec(1, axes="CL"), 4)
    assert encode_batch(encoder, batch)["mask"].tolist() == [[True, True], [True, False]]
    assert encoder.given is batch["clip"]
    assert "mask" not in encode_batch(encoder, batch["clip"])
    taking = Shapes(
        "CL",
        (2, 4, 2),
        InputSpec(1, axes="CL", takes_mask=True),
        4,
        own_mask=torch.tensor([[1, 1], [0, 1]]),
    )
    assert encode_batch(taking, batch)["mask"].tolist() == [[True, True], [False, True]]
    assert taking.given is batch
    assert (without_mask(batch), without_mask({**batch, "more": batch["clip"]})) == (
        batch["clip"],
        None,
    )
    assert mask_of(batch["clip"]) is None
    with pytest.raises(EncoderError, match=r"takes one tensor.*\['clip', 'mask', 'more'\]"):
        encode_batch(encoder, {**batch, "more": batch["clip"]})
    with pytest.raises(EncoderError, match="takes_mask"):
        encode_batch(taking, batch["clip"])


def test_ragged_rows_without_a_mask_count_whole() -> None:
    encoder = Shapes("CL", (2, 4, 5), InputSpec(1, axes="CL"), 4, "L")
    assert torch.equal(
        encode_batch(encoder, torch.zeros(2, 1, 17))["mask"], torch.ones(2, 5, dtype=torch.bool)
    )


@pytest.mark.parametrize(
    ("axes", "input_axes", "downscale", "rows", "latents", "message"),
    [
        ("CTHW", "CTHW", (4, 8, 8), (2, 3, 9, 16, 16), (2, 4, 3, 2, 2), ""),
        (
            "CTHW",
            "CTHW",
            (4, 8, 8),
            (2, 3, 9, 16, 16),
            (2, 4, 2, 2, 2),
            "sizes T 2, H 2, W 2 for an input of T 9, .* says T 3, H 2, W 2",
        ),
        ("CTHW", "CTHW", (4, 8, 8), (2, 3, 9, 16, 24), (2, 4, 3, 2, 2), "says T 3, H 2, W 3"),
        (
            "CDHW",
            "CDHW",
            4,
            (2, 1, 8, 8, 8),
            (2, 4, 2, 2, 1),
            "sizes D 2, H 2, W 1 for an input of D 8, H 8, W 8",
        ),
        ("CL", "CL", 8, (2, 1, 33), (2, 4, 5), ""),
        ("CL", "CL", 8, (2, 1, 33), (2, 4, 4), "L 4 for an input of L 33; its layout says L 5"),
        ("CL", "CTM", 4, (2, 1, 16, 8), (2, 4, 7), ""),
        ("CTM", "CTM", (4, 2), (2, 1, 16, 8), (2, 4, 4, 8), "says T 4, M 4"),
        ("CL", "L", 1, (2, 9), (2, 4, 8), "says L 9"),
        (
            "CTHW",
            "CTHW",
            (4, 8, 8),
            (2, 3, 9, 16, 16),
            (2, 5, 3, 2, 2),
            r"shape \(2, 5, 3, 2, 2\); its layout says 2 rows, axes CTHW, 4",
        ),
        ("CTHW", "CTHW", (4, 8, 8), (2, 3, 9, 16, 16), (2, 4, 3, 2), "axes CTHW"),
    ],
)
def test_latents_are_held_to_their_layout_on_any_axes(
    axes: str,
    input_axes: str,
    downscale: Any,
    rows: tuple[int, ...],
    latents: tuple[int, ...],
    message: str,
) -> None:
    encoder, batch = Shapes(
        axes, latents, InputSpec(rows[1], axes=input_axes), downscale
    ), torch.zeros(rows)
    if not message:
        assert encode_batch(encoder, batch)["latent"].shape == latents
        return
    with pytest.raises(EncoderError, match=message):
        encode_batch(encoder, batch)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (Shapes("HWC", (), InputSpec(3), 8), "channels come first"),
        (Shapes("CHW", (), InputSpec(3), (8, 8, 8)), "3 numbers in downscale"),
        (Shapes("CL", (), InputSpec(1), 8, "T"), "ragged_axis 'T'"),
        (Shapes("CL", (), InputSpec(1), 8, "C"), "ragged_axis 'C'"),
        (
            Shapes("CL", (), InputSpec(1), 8, "L", normalization=Normalization(fold={"L": 2})),
            "ragged axis L can't be folded",
        ),
        (
            Shapes(
                "CL", (), InputSpec(1), 8, "L", normalization=Normalization(scale=[[1.0, 2.0]] * 4)
            ),
            r"shape \[4, 2\]",
        ),
    ],
)
def test_layouts_that_contradict_themselves(encoder: Shapes, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        check_layout(encoder)


def test_layouts_that_fit() -> None:
    check_layout(
        Shapes("CL", (), InputSpec(1), 8, "L", normalization=Normalization(scale=[[1.0]] * 4))
    )
    check_layout(Shapes("L", (), InputSpec(1), 8, "L", kind="quantised"))
    check_layout(
        Shapes(
            "CTHW", (), InputSpec(3), (4, 8, 8), normalization=Normalization(fold={"H": 2, "W": 2})
        )
    )


def test_rows_of_a_batch_are_alike() -> None:
    row, pool = torch.zeros(1, 4), BufferPool(False)
    batch = stack([{"clip": row, "mask": row[0]}, {"clip": row + 1, "mask": row[0]}], pool)
    assert batch["clip"][1].tolist() == [[1.0] * 4]
    for other in (torch.zeros(1, 5), {"clip": row, "mask": row[0]}, row.double()):
        with pytest.raises(PluginError, match="Rows of a bucket must have the same shape"):
            stack([row, other], pool)

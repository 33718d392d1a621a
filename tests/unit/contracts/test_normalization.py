"""Normalization is what the models' own pipelines do, and inverts."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from latentkit.contracts import LatentLayout, Normalization
from latentkit.reading.posterior import Normalizer


@pytest.mark.parametrize("shape", [(4, 6, 8), (2, 4, 6, 8)])
@pytest.mark.parametrize(
    "normalization",
    [
        Normalization(),
        Normalization(0.1159, 0.3611),
        Normalization([0.0, 1.0, -1.0, 2.0], [1.0, 0.5, 2.0, 4.0]),
        Normalization(list(range(16)), [0.5] * 16, {"H": 2, "W": 2}),
        Normalization(list(range(24)), [0.25] * 24, {"H": 6}),
    ],
)
def test_invert_undoes_apply(normalization: Normalization, shape: tuple[int, ...]) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalization.invert(normalization.apply(latents)), latents)


def test_scalars_and_channels_are_the_formula() -> None:
    latents = torch.randn(3, 2, 4, 4)
    assert torch.equal(Normalization(0.5, 2.0).apply(latents), (latents - 0.5) * 2.0)
    by_hand = torch.stack([(latents[:, 0] - 1) * 3, (latents[:, 1] + 2) * 0.5], 1)
    torch.testing.assert_close(Normalization([1.0, -2.0], [3.0, 0.5]).apply(latents), by_hand)


def test_fold_orders_channels_as_flux2_patchifies() -> None:
    latents = torch.randn(2, 3, 8, 6)
    folded = Normalization(fold={"H": 2, "W": 2}).apply(latents)
    assert folded.shape == (2, 12, 4, 3)
    for channel in range(3):
        for i in range(2):
            for j in range(2):
                assert torch.equal(
                    folded[:, channel * 4 + i * 2 + j], latents[:, channel, i::2, j::2]
                )


def test_axis_that_the_factor_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match="axis H of size 7"):
        Normalization(fold={"H": 2}).apply(torch.zeros(4, 7, 8))


def test_reader_normalizes_as_the_declaration_says() -> None:
    layout = LatentLayout("latent", "gaussian", "CHW", 4, 8)
    for normalization in (
        Normalization(0.25, 0.5),
        Normalization([0.0, 1.0, -1.0, 2.0], [1.0, 0.5, 2.0, 4.0]),
    ):
        latents = torch.randn(5, 4, 6, 8)
        assert torch.equal(
            Normalizer(normalization, layout)(latents.clone()), normalization.apply(latents)
        )


@pytest.mark.parametrize(
    ("axes", "shape", "fold"),
    [
        ("CTHW", (2, 3, 4, 6, 8), {"H": 2, "W": 2}),
        ("CTHW", (2, 3, 4, 6, 8), {"T": 4}),
        ("CDHW", (2, 3, 4, 6, 8), {"D": 2, "W": 4}),
        ("CL", (2, 3, 12), {"L": 3}),
        ("CTM", (2, 3, 5, 16), {"M": 16}),
    ],
)
def test_fold_on_any_axes_takes_every_factors_th_value(
    axes: str, shape: tuple[int, ...], fold: dict[str, int]
) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    factors = [fold.get(axis, 1) for axis in axes[1:]]
    normalization = Normalization(fold=fold)
    folded = normalization.apply(latents, axes)
    for channel in range(shape[1]):
        for place, offsets in enumerate(itertools.product(*map(range, factors))):
            strided = latents[
                (
                    slice(None),
                    channel,
                    *(
                        slice(start, None, step)
                        for start, step in zip(offsets, factors, strict=True)
                    ),
                )
            ]
            assert torch.equal(folded[:, channel * math.prod(factors) + place], strided)
    assert torch.equal(normalization.invert(folded, axes), latents)
    layout = LatentLayout("latent", "gaussian", axes, 3, 1)
    scaled = Normalization([0.5] * folded.shape[1], list(range(1, folded.shape[1] + 1)), fold)
    assert torch.equal(Normalizer(scaled, layout)(latents.clone()), scaled.apply(latents, axes))


def test_array_of_a_whole_latent_normalizes_value_by_value() -> None:
    latents = torch.randn(2, 3, 4, 5, 6)
    scale = torch.rand(3, 4, 1, 6) + 1
    normalization = Normalization(scale=scale.tolist())
    torch.testing.assert_close(normalization.apply(latents, "CTHW"), latents * scale)
    torch.testing.assert_close(normalization.invert(latents, "CTHW"), latents / scale)

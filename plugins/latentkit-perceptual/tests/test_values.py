"""Distances against those of the original packages, and the loss made of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latentkit_perceptual.loss import Lpips, Perceptual, open_lpips, open_perceptual
from latentkit_perceptual.plugin import PerceptualConfig
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from latentkit.contracts import BuildContext, InputSpec, LossBatch, Reconstruction
from latentkit.errors import TrainingError

ORIGINAL = {
    "lpips-vgg": [0.06233875208157864, 0.6713675178884034],
    "lpips-alex": [0.04898954897030585, 0.8432500112716776],
    "st-lpips-vgg": [0.04336202497348646, 0.6081120908751683],
    "st-lpips-alex": [0.005880820817377584, 1.04560782240124],
}
"""What `python tests/made_weights.py` prints: lpips 0.1.4 and stlpips-pytorch 0.0.2 on the weights
and pictures drawn there.
"""

WholeFile = Callable[[str], Path]
TwoFiles = Callable[[str, Any, str], tuple[Path, Path]]


def open_net(path: Path, net: str, **options: Any) -> Lpips:
    return open_lpips(PerceptualConfig(net=net, model=str(path), **options), Path())


def make_batch(inputs: Tensor, output: Tensor, mask: Tensor | None = None) -> LossBatch:
    found = Reconstruction(output=output, latents=torch.zeros(len(inputs), 1))
    return LossBatch(
        inputs=inputs,
        reconstruction=found,
        mask=mask,
        step=0,
        encode=lambda x: x,
        decode=lambda x: x,
    )


@pytest.mark.parametrize("net", ORIGINAL)
def test_distances_are_the_original_packages(
    net: str, whole_file: WholeFile, pictures: tuple[Tensor, Tensor]
) -> None:
    distances = open_net(whole_file(net), net)(*pictures)
    np.testing.assert_allclose(distances.numpy(), ORIGINAL[net], rtol=2e-5)


@pytest.mark.parametrize("net", ["lpips-vgg", "lpips-alex"])
@pytest.mark.parametrize(("save", "suffix"), [(torch.save, ".pth"), (save_file, ".safetensors")])
def test_torchvisions_weights_with_heads_in_a_file_of_their_own_give_the_same(
    net: str, save: Any, suffix: str, two_files: TwoFiles, pictures: tuple[Tensor, Tensor]
) -> None:
    backbone, heads = two_files(net, save, suffix)
    np.testing.assert_allclose(
        open_net(backbone, net, heads=str(heads))(*pictures).numpy(), ORIGINAL[net], rtol=2e-5
    )


@pytest.mark.slow
def test_published_value_of_st_lpips_is_reproduced() -> None:
    """Needs stlpips-pytorch, and in LATENTKIT_PERCEPTUAL_PICTURES the folder of its authors'
    ex_p0.png, ex_p1.png and ex_ref.png.
    """
    folder = Path(os.environ["LATENTKIT_PERCEPTUAL_PICTURES"])
    files = [
        np.asarray(Image.open(folder / f"ex_{name}.png").convert("RGB"))
        for name in ("p0", "p1", "ref")
    ]
    first, second, reference = (
        torch.tensor(file / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1)[None] for file in files
    )
    alex, vgg = (
        open_lpips(PerceptualConfig(net=net), Path()) for net in ("st-lpips-alex", "st-lpips-vgg")
    )
    assert float(alex(first, reference)) == pytest.approx(0.7777554988861084, abs=1e-6)
    assert [float(vgg(picture, reference)) for picture in (first, second)] == pytest.approx(
        [0.6517, 0.1361], abs=5e-5
    )


# ---------------------------------------------------------------- training


@pytest.fixture(scope="module")
def distance(whole_file: WholeFile) -> Lpips:
    return open_net(whole_file("lpips-alex"), "lpips-alex")


def test_training_a_reconstruction_brings_it_to_the_input(
    distance: Lpips, pictures: tuple[Tensor, Tensor]
) -> None:
    """A perceptual term computed without a gradient, as some trainers have it, would leave the
    picture as it is.
    """
    output = pictures[1].clone().requires_grad_()
    loss, optimizer = Perceptual(distance), torch.optim.Adam([output], lr=0.01)
    first = loss(make_batch(pictures[0], output)).detach()
    for _ in range(15):
        optimizer.zero_grad()
        (output.grad,) = torch.autograd.grad(loss(make_batch(pictures[0], output)).sum(), output)
        optimizer.step()
    assert bool((loss(make_batch(pictures[0], output)).detach() < 0.8 * first).all())


def test_gradient_is_that_of_finite_differences(
    distance: Lpips, pictures: tuple[Tensor, Tensor]
) -> None:
    output, inputs = pictures[1].clone().requires_grad_(), pictures[0]
    (slope,) = torch.autograd.grad(Perceptual(distance)(make_batch(inputs, output)).sum(), output)
    direction, step = slope.sign(), 1e-3
    ends = [
        Perceptual(distance)(make_batch(inputs, (output + side * direction).detach())).sum()
        for side in (step, -step)
    ]
    assert float(ends[0] - ends[1]) / (2 * step) == pytest.approx(
        float((slope * direction).sum()), rel=0.02
    )


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_flat_and_equal_pictures_have_a_finite_gradient(distance: Lpips, value: float) -> None:
    output = torch.full((1, 3, 48, 48), value, requires_grad=True)
    values = Perceptual(distance)(make_batch(torch.full((1, 3, 48, 48), value), output))
    (slope,) = torch.autograd.grad(values.sum(), output)
    assert values.tolist() == [0.0]
    assert bool(slope.isfinite().all())


def test_train_mode_changes_nothing_and_no_weight_learns(
    distance: Lpips, pictures: tuple[Tensor, Tensor]
) -> None:
    """LPIPS's own heads have a dropout that train() switches on again: its distances are then
    random.
    """
    expected = distance(*pictures)
    found = [distance.train()(*pictures) for _ in range(2)]
    assert all(torch.equal(values, expected) for values in found)
    assert not any(weight.requires_grad for weight in distance.parameters())


def test_range_of_the_encoder_is_brought_to_that_of_the_network(
    whole_file: WholeFile, pictures: tuple[Tensor, Tensor]
) -> None:
    config = PerceptualConfig(net="lpips-alex", model=str(whole_file("lpips-alex")))
    loss = open_perceptual(config, BuildContext(input=InputSpec(3, range=(0.0, 1.0))))
    values = loss(make_batch((pictures[0] + 1) / 2, (pictures[1] + 1) / 2))
    np.testing.assert_allclose(values.numpy(), ORIGINAL["lpips-alex"], rtol=1e-4)


def test_gray_pictures_are_colors_that_are_equal(
    distance: Lpips, pictures: tuple[Tensor, Tensor]
) -> None:
    first, second = (values[:, :1] for values in pictures)
    torch.testing.assert_close(
        distance(first, second), distance(first.repeat(1, 3, 1, 1), second.repeat(1, 3, 1, 1))
    )


def test_masked_pixels_are_taken_as_right(distance: Lpips, pictures: tuple[Tensor, Tensor]) -> None:
    mask = torch.ones(2, 1, 64, 48)
    mask[..., 24:] = 0
    output = torch.where(mask.bool(), pictures[1], 7.0)
    repaired = torch.where(mask.bool(), pictures[1], pictures[0])
    torch.testing.assert_close(
        Perceptual(distance)(make_batch(pictures[0], output, mask)), distance(repaired, pictures[0])
    )
    assert Perceptual(distance)(
        make_batch(pictures[0], output, torch.zeros(2, 1, 64, 48))
    ).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("net", "smallest"),
    [("lpips-alex", 31), ("lpips-vgg", 16), ("st-lpips-alex", 21), ("st-lpips-vgg", 18)],
)
def test_smallest_pictures_work_and_smaller_ones_are_refused(
    net: str, smallest: int, whole_file: WholeFile
) -> None:
    model = open_net(whole_file(net), net)
    square = torch.zeros(1, 3, smallest, smallest)
    assert model(square, square).tolist() == [0.0]
    with pytest.raises(
        TrainingError,
        match=rf"sides of at least {smallest} pixels, got \(1, 3, {smallest - 1}, {smallest}\)",
    ):
        model(square[:, :, 1:], square[:, :, 1:])

"""Wavelet coefficients against the matrix of the transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_batches import make_batch
from torch import Tensor

from latentkit.contracts import LossBatch
from latentkit.errors import TrainingError
from latentkit.losses.wavelet import Wavelet, haar


def batch_of(errors: Tensor, mask: Tensor | None = None) -> LossBatch:
    inputs = torch.full_like(errors, 0.25)
    return make_batch(inputs, inputs + errors, mask)


def haar_matrix(size: int) -> np.ndarray:
    """Orthonormal Haar transform of one level: sums of neighbors, then their differences, over the
    root of 2.
    """
    half = np.eye(size // 2)
    return np.concatenate([np.kron(half, [1, 1]), np.kron(half, [1, -1])]) / np.sqrt(2)


def coefficients(values: np.ndarray, levels: int) -> np.ndarray:
    """All coefficients of an even (H, W) array, flat."""
    height, width = values.shape
    bands = haar_matrix(height) @ values @ haar_matrix(width).T
    low = bands[: height // 2, : width // 2]
    if levels > 1:
        rest = np.concatenate(
            [bands[: height // 2, width // 2 :].ravel(), bands[height // 2 :].ravel()]
        )
        return np.concatenate([coefficients(low, levels - 1), rest])
    return bands.ravel()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_loss_is_the_mean_absolute_coefficient_of_the_error(levels: int) -> None:
    errors = torch.randn(2, 3, 8, 16)
    expected = [
        np.mean([np.abs(coefficients(plane.numpy(), levels)).mean() for plane in planes])
        for planes in errors
    ]
    np.testing.assert_allclose(Wavelet(levels)(batch_of(errors)).numpy(), expected, rtol=1e-4)


def test_transform_keeps_the_energy() -> None:
    values = torch.randn(2, 1, 6, 10)
    assert sum(float(band.square().sum()) for band in haar(values)) == pytest.approx(
        float(values.square().sum()), rel=1e-5
    )


def test_a_constant_error_is_in_the_low_frequencies_alone() -> None:
    low, *edges = haar(torch.full((1, 1, 4, 4), 0.5))
    assert low.tolist() == [[[[1.0, 1.0], [1.0, 1.0]]]]
    assert not any(bool(band.any()) for band in edges)


@pytest.mark.parametrize("shape", [(5, 8), (8, 7), (5, 7), (1, 1)])
def test_a_side_that_is_odd_is_completed_with_right_values(shape: tuple[int, int]) -> None:
    errors = torch.randn(2, 3, *shape)
    height, width = shape
    whole = np.zeros((2, 3, height + height % 2, width + width % 2))
    whole[..., :height, :width] = errors
    sums = [sum(np.abs(coefficients(plane, 1)).sum() for plane in planes) for planes in whole]
    np.testing.assert_allclose(
        Wavelet()(batch_of(errors)).numpy(), np.array(sums) / (3 * height * width), rtol=1e-4
    )


def test_masked_errors_do_not_count() -> None:
    errors, mask = torch.randn(1, 2, 4, 8), torch.ones(1, 1, 4, 8)
    mask[..., 4:] = 0
    torch.testing.assert_close(
        Wavelet()(batch_of(errors, mask)), Wavelet()(batch_of(errors[..., :4]))
    )


def test_gradient_is_the_transform_of_signs() -> None:
    errors = torch.randn(1, 1, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(Wavelet()(batch_of(errors)).sum(), errors)
    matrix = haar_matrix(4)
    expected = matrix.T @ np.sign(matrix @ errors.detach().numpy()[0, 0] @ matrix.T) @ matrix / 16
    np.testing.assert_allclose(slope[0, 0].numpy(), expected, atol=1e-6)


def test_sound_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"expected images, \(N, C, H, W\), got \(1, 2, 16\)"):
        Wavelet()(batch_of(torch.zeros(1, 2, 16)))

"""Metrics `ssim` and `ms-ssim`: structural similarity, in float64.

Z. Wang, A. C. Bovik, H. R. Sheikh and E. P. Simoncelli, "Image Quality Assessment: From Error
Visibility to Structural Similarity" (2004), eq. 13, with an 11 x 11 Gaussian window of sigma 1.5;
the mean is over the windows that lie wholly inside the image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from latentkit.contracts import MetricBatch, MetricSetting
from latentkit.errors import SourceError
from latentkit.metrics.metric import PerSample
from latentkit.metrics.pixels import PEAK, ROUNDED, levels

SIGMA, WINDOW = 1.5, 11
WEIGHTS = [
    math.exp(-0.5 * (offset / SIGMA) ** 2) for offset in range(-(WINDOW // 2), WINDOW // 2 + 1)
]
WEIGHTS = [weight / sum(WEIGHTS) for weight in WEIGHTS]
"""The window's weights along one axis."""
LUMINANCE_CONSTANT, CONTRAST_CONSTANT = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales: Z. Wang, E. P. Simoncelli and A. C. Bovik, "Multi-Scale
Structural Similarity for Image Quality Assessment" (2003), section 3.2.
"""

HOW = (
    "Gaussian window 11 x 11, sigma 1.5, population covariances; per color channel, then their mean"
)


def ssim() -> PerSample:
    """Return the metric of structural similarity, at most 1."""

    def measure(batch: MetricBatch, setting: MetricSetting) -> Tensor:
        inputs, output = _image_pair(batch, setting, "ssim", WINDOW)
        luminance, contrast = _similarities(inputs, output)
        return (luminance * contrast).flatten(1).mean(dim=1)

    protocol = f"mean over samples; {HOW}; {ROUNDED}; data range 255; decoded from {{decoded_from}}"
    return PerSample(measure, "", "higher", protocol)


def ms_ssim() -> PerSample:
    """Return the metric of structural similarity at five scales, at most 1."""

    def measure(batch: MetricBatch, setting: MetricSetting) -> Tensor:
        smallest = WINDOW * 2 ** (len(SCALE_WEIGHTS) - 1)
        inputs, output = _image_pair(batch, setting, "ms-ssim", smallest)
        product = inputs.new_ones(())
        for scale, weight in enumerate(SCALE_WEIGHTS):
            luminance, contrast = _similarities(inputs, output)
            is_last = scale == len(SCALE_WEIGHTS) - 1
            similarity = (luminance * contrast if is_last else contrast).flatten(2).mean(dim=2)
            product = product * similarity.clamp(min=0) ** weight
            inputs, output = avg_pool2d(inputs, 2), avg_pool2d(output, 2)
        return product.mean(dim=1)

    how = (
        "mean over samples; five scales halved by averaging, weights"
        f" {', '.join(map(str, SCALE_WEIGHTS))}; a negative factor counts as 0"
    )
    protocol = f"{how}; {HOW}; {ROUNDED}; data range 255; decoded from {{decoded_from}}"
    return PerSample(measure, "", "higher", protocol)


def _image_pair(
    batch: MetricBatch, setting: MetricSetting, name: str, smallest: int
) -> tuple[Tensor, Tensor]:
    """Return inputs and output as 8-bit levels, after checking that they are large enough."""
    inputs, output = batch.pair()
    if inputs.ndim != 4 or min(inputs.shape[2:]) < smallest:
        found = " x ".join(map(str, inputs.shape[2:]))
        needed = f"metric {name!r} needs images of at least {smallest} x {smallest} pixels"
        raise SourceError(f"{needed}, got {found}; prepare larger images, or leave the metric out")
    return levels(inputs, setting.input_range), levels(output, setting.input_range)


def _similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps (N, C, H - 10, W - 10) of luminance, and of contrast times structure."""
    planes = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = _blur(planes)
    luminance = (2 * mean_a * mean_b + LUMINANCE_CONSTANT) / (
        mean_a**2 + mean_b**2 + LUMINANCE_CONSTANT
    )
    covariance = product - mean_a * mean_b
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return luminance, (2 * covariance + CONTRAST_CONSTANT) / (variances + CONTRAST_CONSTANT)


def _blur(planes: Tensor) -> Tensor:
    """Average (..., H, W) under the window wherever the whole window fits: (..., H - 10, W - 10).

    Sums of shifted planes are ten times as fast as conv2d here.
    """
    for axis in (-2, -1):
        length = planes.shape[axis] - WINDOW + 1
        blurred = planes.narrow(axis, 0, length) * WEIGHTS[0]
        for offset, weight in enumerate(WEIGHTS[1:], 1):
            blurred.add_(planes.narrow(axis, offset, length), alpha=weight)
        planes = blurred
    return planes

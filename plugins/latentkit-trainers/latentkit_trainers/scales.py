"""The constants by which trainers normalize raw latents, written into their code."""

from __future__ import annotations

from latentkit.contracts import Normalization

SD = Normalization(0.0, 0.18215)
SDXL = Normalization(0.0, 0.13025)
SD3 = Normalization(0.0609, 1.5305)
FLUX = Normalization(0.1159, 0.3611)
HUNYUAN_IMAGE = Normalization(0.0, 0.75289)
HUNYUAN_VIDEO_15 = Normalization(0.0, 1.03682)
MAR = Normalization(0.0, 0.2325)

_QWEN_IMAGE_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916),
)
QWEN_IMAGE = Normalization(
    (
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    tuple(1 / std for std in _QWEN_IMAGE_STD),
)
"""Also Wan 2.1's."""

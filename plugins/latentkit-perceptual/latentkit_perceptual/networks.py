"""The convolutional parts of AlexNet and VGG16, with torchvision's layer numbers, plain and
shift-tolerant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of each convolution. Between the groups the image size is halved."""


class Network(nn.Module):
    """Returns the feature maps after each group of layers.

    Args:
        groups: groups of layers, each ending in the activation that is returned.
        smallest_side: smallest side of an image, in pixels.
    """

    def __init__(self, groups: Sequence[Sequence[nn.Module]], smallest_side: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer for group in groups for layer in group])
        self.smallest_side = smallest_side
        self._ends = {
            sum(len(group) for group in groups[: number + 1]) - 1 for number in range(len(groups))
        }
        convolutions = [
            [layer for layer in group if isinstance(layer, nn.Conv2d)] for group in groups
        ]
        self.widths = [group[-1].out_channels for group in convolutions]

    def forward(self, images: Tensor) -> list[Tensor]:
        found = []
        for number, layer in enumerate(self.layers):
            images = layer(images)
            if number in self._ends:
                found.append(images)
        return found


class Blur(nn.Module):
    """Halves the size after a binomial filter: Zhang 2019, "Making Convolutional Networks
    Shift-Invariant Again".

    The border is reflected by two pixels on every side, as in Ghildyal and Liu 2022,
    "Shift-tolerant Perceptual Similarity Metric".
    """

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([0.25, 0.5, 0.25])
        self.register_buffer("filt", (line[:, None] * line).repeat(channels, 1, 1, 1))

    def forward(self, values: Tensor) -> Tensor:
        return conv2d(
            pad(values, (2, 2, 2, 2), mode="reflect"), self.filt, stride=2, groups=len(self.filt)
        )


def alexnet() -> Network:
    """Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", as in
    torchvision.
    """
    return Network(
        [
            [nn.Conv2d(3, 64, 11, 4, 2), _relu()],
            [nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2), _relu()],
            [nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, 1, 1), _relu()],
            *_alexnet_end(),
        ],
        smallest_side=31,
    )


def shift_tolerant_alexnet() -> Network:
    """AlexNet with a blur before every stride: Ghildyal and Liu 2022."""
    return Network(
        [
            [nn.Conv2d(3, 64, 11, 1, 2), Blur(64), _relu()],
            [nn.MaxPool2d(3, 1), Blur(64), nn.Conv2d(64, 192, 5, 1, 2), _relu()],
            [nn.MaxPool2d(3, 1), Blur(192), nn.Conv2d(192, 384, 3, 1, 1), _relu()],
            *_alexnet_end(),
        ],
        smallest_side=21,
    )


def vgg16() -> Network:
    """Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", configuration D.
    """
    return Network(list(_vgg_groups(lambda channels: [nn.MaxPool2d(2)])), smallest_side=16)


def shift_tolerant_vgg16() -> Network:
    """VGG16 with a blur before every stride: Ghildyal and Liu 2022."""
    return Network(
        list(_vgg_groups(lambda channels: [nn.MaxPool2d(2, 1), Blur(channels)])), smallest_side=18
    )


def _alexnet_end() -> list[list[nn.Module]]:
    return [[nn.Conv2d(384, 256, 3, 1, 1), _relu()], [nn.Conv2d(256, 256, 3, 1, 1), _relu()]]


def _vgg_groups(halve: Callable[[int], list[nn.Module]]) -> Iterator[list[nn.Module]]:
    channels = 3
    for number, widths in enumerate(VGG_WIDTHS):
        group = halve(channels) if number else []
        for width in widths:
            group += [nn.Conv2d(channels, width, 3, 1, 1), _relu()]
            channels = width
        yield group


def _relu() -> nn.Module:
    return nn.ReLU(inplace=True)

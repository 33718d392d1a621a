"""A small image classifier, trained on few items, to compare ways of augmentation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    affine_grid,
    cross_entropy,
    grid_sample,
    one_hot,
)

LEARNING_RATE, BATCH_SIZE = 2e-3, 64
LARGEST_SHIFT, SMALLEST_CROP, MIXUP = 0.08, 0.85, 0.2
"""Shift and crop as shares of the side, and the parameter of mixup's beta distribution."""
EVALUATED_AT_ONCE = 512


@dataclass(frozen=True)
class LabeledImages:
    """Images (N, C, H, W) float32 and their class numbers (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> LabeledImages:
        """Return them on a device."""
        return LabeledImages(self.images.to(device), self.labels.to(device))


class Classifier(nn.Module):
    """Three convolutions and a linear layer over 4 x 4 pooled features."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(channels, 16, 3, padding=1), nn.GroupNorm(8, 16), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(8, 32), nn.ReLU()),
        )
        self.head = nn.Linear(32 * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, classes) of images (N, C, H, W)."""
        pooled = adaptive_avg_pool2d(self.features(images), 4)
        logits: Tensor = self.head(pooled.flatten(1))
        return logits


def train_classifier(
    data: LabeledImages, num_classes: int, steps: int, seed: int, augments: bool, flips: bool
) -> Classifier:
    """Train a classifier from scratch. Two calls with the same arguments give equal weights.

    Args:
        augments: whether images are shifted, cropped and mixed at random in each step; mixup:
            H. Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018).
        flips: whether they are also mirrored.
    """
    device = data.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = Classifier(data.images.shape[1], num_classes).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            chosen = torch.randint(len(data), (BATCH_SIZE,))
            images = data.images[chosen]
            targets = one_hot(data.labels[chosen], num_classes).float()
            if augments:
                images, targets = _mix(_move(images, flips), targets)
            loss = cross_entropy(network(images), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return network.eval()


def accuracy(network: Classifier, data: LabeledImages) -> float:
    """Return the share of images that are classified correctly."""
    correct = 0
    with torch.no_grad():
        for start in range(0, len(data), EVALUATED_AT_ONCE):
            part = slice(start, start + EVALUATED_AT_ONCE)
            found = network(data.images[part]).argmax(1)
            correct += int((found == data.labels[part]).sum())
    return correct / len(data)


def _move(images: Tensor, flips: bool) -> Tensor:
    """Return each image shifted and cropped at random, edges repeated."""
    count = len(images)
    scale = torch.empty(count).uniform_(SMALLEST_CROP, 1)
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) if flips else torch.ones(count)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1] = scale * mirror, scale
    turn[:, :, 2] = torch.empty(count, 2).uniform_(-1, 1) * 2 * LARGEST_SHIFT
    grid = affine_grid(turn.to(images.device), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)


def _mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return mixtures of each image, and of its class, with another."""
    share = torch.distributions.Beta(MIXUP, MIXUP).sample((len(images),)).to(images.device)
    order = torch.randperm(len(images))
    wide = share.reshape(-1, 1, 1, 1)
    mixed = images * wide + images[order] * (1 - wide)
    return mixed, targets * share[:, None] + targets[order] * (1 - share[:, None])

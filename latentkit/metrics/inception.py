"""Inception v3 up to its pooled features, for weights in the layout of torchvision's state dict.

C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016).

Published FID values are of TensorFlow's graph of 2015, whose weights have 1,008 classes. Its
pooling differs from torchvision's: averages near the border don't count the zeros around the image,
and the last block takes a maximum instead of an average.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate, max_pool2d, relu

SIDE = 299
FID_CLASSES = 1008
UNUSED = ("fc.", "AuxLogits.")
STEM = (
    ("1a_3x3", 3, 32, 3),
    ("2a_3x3", 32, 32, 3),
    ("2b_3x3", 32, 64, 3),
    ("3b_1x1", 64, 80, 1),
    ("4a_3x3", 80, 192, 3),
)
"""Names of the first convolutions, channels in and out, side of the kernel."""

Kernel = tuple[int, int]
Branch = tuple[tuple[str, int, Kernel], ...]
"""Successive convolutions: name, output channels, kernel."""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, inner: int, outer: int, kernel: Kernel, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(inner, outer, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=0.001)

    def forward(self, values: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, outer, ...)."""
        return relu(self.bn(self.conv(values)))


class Block(nn.Module):
    """Parallel branches and a pooling branch, whose channels are concatenated.

    Args:
        inner: input channels.
        branches: each a chain of convolutions; two last ones whose names end in "a" and "b" run
            in parallel on the same input.
        pooled: output channels of the pooling branch; 0 means that this block halves height and
            width, by a maximum and by the last convolution of each branch.
        pool: pooling over 3 x 3 positions: "average" counts the zeros around the image,
            "average-without-padding" doesn't, "maximum".
    """

    def __init__(
        self, inner: int, branches: tuple[Branch, ...], pooled: int, pool: str = "average"
    ) -> None:
        super().__init__()
        self._branches, self._pooled, self._pool = branches, pooled, pool
        for branch in branches:
            channels = inner
            for number, (name, outer, kernel) in enumerate(branch):
                halves = not pooled and number == len(branch) - 1
                self.add_module(
                    name, Convolution(channels, outer, kernel, 2 if halves else 1, not halves)
                )
                if not name.endswith("a"):
                    channels = outer
        if pooled:
            self.branch_pool = Convolution(inner, pooled, (1, 1))

    def forward(self, values: Tensor) -> Tensor:
        """Return (N, C, H, W): the channels of the branches, then of the pooling branch."""
        found = []
        for branch in self._branches:
            state = values
            for name, _, _ in branch:
                output = self.get_submodule(name)(state)
                if name.endswith(("a", "b")):
                    found.append(output)
                else:
                    state = output
            if not branch[-1][0].endswith("b"):
                found.append(state)
        return torch.cat([*found, self._pooling(values)], dim=1)

    def _pooling(self, values: Tensor) -> Tensor:
        """Return the output of the pooling branch."""
        if not self._pooled:
            return max_pool2d(values, 3, 2)
        if self._pool == "maximum":
            pooled = max_pool2d(values, 3, 1, 1)
        else:
            pooled = avg_pool2d(values, 3, 1, 1, count_include_pad=self._pool == "average")
        projected: Tensor = self.branch_pool(pooled)
        return projected


class Inception(nn.Module):
    """Images in [0, 1] to features; names as in torchvision.

    Args:
        pools_as_fid_graph: pool as TensorFlow's graph of 2015 does, see the module.
    """

    def __init__(self, pools_as_fid_graph: bool) -> None:
        super().__init__()
        for name, inner, outer, side in STEM:
            stride, padded = 2 if name == "1a_3x3" else 1, name == "2b_3x3"
            self.add_module(
                f"Conv2d_{name}", Convolution(inner, outer, (side, side), stride, padded)
            )
        pool = "average-without-padding" if pools_as_fid_graph else "average"
        for name, inner, pooled in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
            self.add_module(f"Mixed_{name}", Block(inner, _grid_35(), pooled, pool))
        self.Mixed_6a = Block(288, _reduction_35(), 0)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            self.add_module(f"Mixed_{name}", Block(768, _grid_17(width), 192, pool))
        self.Mixed_7a = Block(768, _reduction_17(), 0)
        self.Mixed_7b = Block(1280, _grid_8(), 192, pool)
        last_pool = "maximum" if pools_as_fid_graph else "average"
        self.Mixed_7c = Block(2048, _grid_8(), 192, last_pool)

    def forward(self, images: Tensor) -> Tensor:
        """Return features (N, 2048) of images (N, 3, H, W) in [0, 1]."""
        values = 2 * interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False) - 1
        for name, layer in self.named_children():
            values = layer(values)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                values = max_pool2d(values, 3, 2)
        return adaptive_avg_pool2d(values, 1).flatten(1)


def build_inception(tensors: Mapping[str, Tensor]) -> Inception:
    """Return the network with these weights, float32, frozen.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; the message names them.
    """
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else 0
    network = Inception(pools_as_fid_graph=classes == FID_CLASSES)
    expected = network.state_dict()
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNUSED)}
    counters = {
        name for name in expected if name.endswith("num_batches_tracked")
    }  # older files have none
    wrong = {
        "missing": sorted(expected.keys() - found.keys() - counters),
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in found if name in expected and found[name].shape != expected[name].shape
        ),
    }
    if any(wrong.values()):
        shown = {
            kind: ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for kind, names in wrong.items()
        }
        raise ValueError("; ".join(f"{kind}: {text}" for kind, text in shown.items() if text))
    network.load_state_dict({**expected, **found})
    return network.float().eval().requires_grad_(False)


def _grid_35() -> tuple[Branch, ...]:
    return (
        (("branch1x1", 64, (1, 1)),),
        (("branch5x5_1", 48, (1, 1)), ("branch5x5_2", 64, (5, 5))),
        (
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        ),
    )


def _reduction_35() -> tuple[Branch, ...]:
    return (
        (("branch3x3", 384, (3, 3)),),
        (
            ("branch3x3dbl_1", 64, (1, 1)),
            ("branch3x3dbl_2", 96, (3, 3)),
            ("branch3x3dbl_3", 96, (3, 3)),
        ),
    )


def _grid_17(width: int) -> tuple[Branch, ...]:
    long = [(7, 1), (1, 7), (7, 1), (1, 7)]
    chain = [
        (f"branch7x7dbl_{number + 2}", 192 if number == 3 else width, kernel)
        for number, kernel in enumerate(long)
    ]
    return (
        (("branch1x1", 192, (1, 1)),),
        (
            ("branch7x7_1", width, (1, 1)),
            ("branch7x7_2", width, (1, 7)),
            ("branch7x7_3", 192, (7, 1)),
        ),
        (("branch7x7dbl_1", width, (1, 1)), *chain),
    )


def _reduction_17() -> tuple[Branch, ...]:
    return (
        (("branch3x3_1", 192, (1, 1)), ("branch3x3_2", 320, (3, 3))),
        (
            ("branch7x7x3_1", 192, (1, 1)),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, (3, 3)),
        ),
    )


def _grid_8() -> tuple[Branch, ...]:
    return (
        (("branch1x1", 320, (1, 1)),),
        (
            ("branch3x3_1", 384, (1, 1)),
            ("branch3x3_2a", 384, (1, 3)),
            ("branch3x3_2b", 384, (3, 1)),
        ),
        (
            ("branch3x3dbl_1", 448, (1, 1)),
            ("branch3x3dbl_2", 384, (3, 3)),
            ("branch3x3dbl_3a", 384, (1, 3)),
            ("branch3x3dbl_3b", 384, (3, 1)),
        ),
    )

"""Weights and pictures drawn from a seed, in the layouts of real files, and what the original
packages make of them.

`python tests/made_weights.py` prints the values in test_values.py; it needs lpips 0.1.4,
stlpips-pytorch 0.0.2 and what these import: torchvision, torchsummary and ipython.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

VGG_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# (channels in, channels out, side of the kernel), and layers that follow before the next one's
# number
ALEX = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
ALEX_NUMBERS = {"lpips": (0, 3, 6, 8, 10), "st-lpips": (0, 5, 9, 11, 13)}
ALEX_BLURS = {1: 64, 4: 64, 8: 192}


def draw_pictures() -> tuple[Tensor, Tensor]:
    """Two batches of two pictures of 64 x 48, smooth and noisy, in [-1, 1]."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    first = torch.stack(
        [torch.sin(rows / (5 + color) + columns / 7 * (color - 1)) for color in range(3)]
    )
    noise = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(5)) * 2 - 1
    second = (first + 0.3 * noise).clamp(-1, 1)
    return torch.stack([first, first.flip(2)]), second


def draw_weights(net: str) -> dict[str, Tensor]:
    """A whole network as LPIPS saves it, of random weights that keep the size of features; heads
    are positive.

    Args:
        net: "lpips-vgg", "lpips-alex", "st-lpips-vgg" or "st-lpips-alex".
    """
    generator = torch.Generator().manual_seed(11)
    kind, _, backbone = net.rpartition("-")
    tensors: dict[str, Tensor] = {}
    shapes = _vgg_layers(kind) if backbone == "vgg" else _alex_layers(kind)
    for name, shape in shapes.items():
        if name.endswith("filt"):
            line = torch.tensor([0.25, 0.5, 0.25])
            tensors[name] = (line[:, None] * line).repeat(shape[0], 1, 1, 1)
            continue
        fan_in = shape[1] * shape[2] * shape[3]
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    widths = (
        [group[-1] for group in VGG_GROUPS] if backbone == "vgg" else [shape[1] for shape in ALEX]
    )
    for number, width in enumerate(widths):
        tensors[f"lin{number}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    return tensors


def _alex_layers(kind: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for slice_number, (number, (before, after, side)) in enumerate(
        zip(ALEX_NUMBERS[kind], ALEX, strict=True), start=1
    ):
        shapes[f"net.slice{slice_number}.{number}"] = (after, before, side, side)
    if kind == "st-lpips":
        shapes |= {
            f"net.slice{1 + (number > 1) + (number > 4)}.{number}.filt": (width,)
            for number, width in ALEX_BLURS.items()
        }
    return shapes


def _vgg_layers(kind: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    number, before = 0, 3
    for slice_number, widths in enumerate(VGG_GROUPS, start=1):
        if slice_number > 1:
            number += 1
            if kind == "st-lpips":
                shapes[f"net.slice{slice_number}.{number}.filt"] = (before,)
                number += 1
        for width in widths:
            shapes[f"net.slice{slice_number}.{number}"] = (width, before, 3, 3)
            number, before = number + 2, width
    return shapes


def print_originals() -> None:
    """The distances of the original packages' own code, in double precision."""
    first, second = (pictures.double() for pictures in draw_pictures())
    for net in ("lpips-vgg", "lpips-alex", "st-lpips-vgg", "st-lpips-alex"):
        kind, _, backbone = net.rpartition("-")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "weights.pth"
            torch.save(draw_weights(net), path)
            if kind == "st-lpips":
                package = importlib.import_module("stlpips_pytorch.stlpips")
                model = package.LPIPS(
                    net=backbone, variant="shift_tolerant", model_path=str(path), verbose=False
                )
            else:
                package = importlib.import_module("lpips")
                model = package.LPIPS(
                    net=backbone, pnet_rand=True, model_path=str(path), verbose=False
                )
        found = model.load_state_dict(draw_weights(net), strict=False)
        assert not found.unexpected_keys
        print(f'    "{net}": {model.double()(first, second).flatten().tolist()},')


if __name__ == "__main__":
    print_originals()

"""Loss `perceptual`: distance of two images in the features of a classifier, with weights from this
machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from latentkit.contracts import BuildContext, LossBatch
from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError, TrainingError
from latentkit_perceptual import networks
from latentkit_perceptual.weights import find_packaged, split_tensors

if TYPE_CHECKING:
    from latentkit_perceptual.plugin import PerceptualConfig

NETWORKS = {
    "lpips-vgg": networks.vgg16,
    "lpips-alex": networks.alexnet,
    "st-lpips-vgg": networks.shift_tolerant_vgg16,
    "st-lpips-alex": networks.shift_tolerant_alexnet,
}
ST_FILE = "weights/vST0.0/{}_shift_tolerant.pth"
HEADS_FILE = "weights/v0.1/{}.pth"
TORCHVISION = "https://download.pytorch.org/models/"
BACKBONE_FILES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of each color in [-1, 1], before the network: LPIPS 0.1."""
SMALLEST_SQUARED_LENGTH = 1e-10
"""Added to the squared length of a feature vector, whose direction has no gradient at zero."""


class Lpips(nn.Module):
    """LPIPS: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", eq. 1.

    It has no dropout and no running statistics, so `train()` changes nothing, and its weights are
    frozen. Gradients go to the images.

    Args:
        network: computes feature maps.
        heads: weights of each map's channels, (1, C, 1, 1).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: networks.Network, heads: list[Tensor]) -> None:
        super().__init__()
        self.network = network
        self.num_maps = len(heads)
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values)[:, None, None])
        for number, head in enumerate(heads):
            self.register_buffer(f"head{number}", head.detach().float().reshape(1, -1, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return distances (N,) float32 of two batches of images, (N, 3, H, W) or (N, 1, H, W) in
        [-1, 1]; 0 for equal images.

        Raises:
            TrainingError: the inputs aren't images, or are too small for the network.
        """
        smallest = self.network.smallest_side
        if first.ndim != 4 or first.shape[1] not in (1, 3) or min(first.shape[2:]) < smallest:
            raise TrainingError(
                "loss 'perceptual': expected images (N, 3, H, W) with sides of at least"
                f" {smallest} pixels, got {tuple(first.shape)}"
            )
        with torch.autocast(first.device.type, enabled=False):
            maps = zip(self._features(first), self._features(second), strict=True)
            found = [
                (self.get_buffer(f"head{number}") * (a - b).square()).sum(1).mean((1, 2))
                for number, (a, b) in enumerate(maps)
            ]
        return torch.stack(found).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Return each map's feature vectors, scaled to length 1."""
        normed = (images.float().expand(-1, 3, -1, -1) - self.shift) / self.scale
        return [
            found * (found.square().sum(1, keepdim=True) + SMALLEST_SQUARED_LENGTH).rsqrt()
            for found in self.network(normed)
        ]


class Perceptual:
    """LPIPS of reconstruction and input. Masked pixels of the reconstruction count as correct.

    Args:
        distance: frozen; moved to the images' device.
        input_range: lowest and highest value of the images.
    """

    def __init__(self, distance: Lpips, input_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        self._distance = distance
        self._low, self._high = input_range

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return the loss of each sample, (N,) float32.

        Raises:
            TrainingError: the inputs aren't images, or are too small for the network.
        """
        inputs, output = batch.inputs.float(), batch.reconstruction.output.float()
        if batch.mask is not None:
            output = torch.where(batch.mask.bool(), output, inputs)
        distances: Tensor = self._distance.to(inputs.device)(
            self._center(output), self._center(inputs)
        )
        return distances

    def _center(self, images: Tensor) -> Tensor:
        return (images - self._low) * (2 / (self._high - self._low)) - 1


def open_perceptual(config: PerceptualConfig, context: BuildContext) -> Perceptual:
    """Return the loss of a recipe.

    Raises:
        EncoderError: a weights file is missing, isn't one, or is another network's; the message
            names the file.
    """
    distance = open_lpips(config, context.recipe_dir)
    return Perceptual(distance, context.input.range) if context.input else Perceptual(distance)


def open_lpips(config: PerceptualConfig, base: Path) -> Lpips:
    """Return the distance that a config names. Relative paths start from `base`.

    Raises:
        EncoderError: as for `open_perceptual`.
    """
    backbone = config.net.rpartition("-")[2]
    path = _find_model(config, backbone, base)
    layers, heads = split_tensors(read_tensors(path, _where_from(config.net)))
    network = NETWORKS[config.net]()
    _load(network, layers, path, config.net)
    heads_path = path
    if config.heads is not None or not heads:
        heads_path = _find_heads(config, backbone, base)
        _, heads = split_tensors(read_tensors(heads_path))
    return Lpips(network, _check_heads(heads, network.widths, heads_path, config.net))


def _find_model(config: PerceptualConfig, backbone: str, base: Path) -> Path:
    if config.model is not None:
        return Path(os.path.abspath(base / Path(config.model).expanduser()))
    if not config.net.startswith("st-"):
        wanted = {"vgg": "vgg16", "alex": "alexnet"}[backbone]
        needed = f"needs model: a file with torchvision's weights of {wanted}"
        raise EncoderError(
            f"loss 'perceptual': net {config.net} {needed}; {_where_from(config.net)}"
        )
    found = find_packaged("stlpips_pytorch", ST_FILE.format(backbone))
    if found is None:
        raise EncoderError(
            f"loss 'perceptual': net {config.net} needs its weights: pip install --no-deps"
            " stlpips-pytorch==0.0.2, or model: a file of them"
        )
    return found


def _where_from(net: str) -> str:
    """Return how to get everything that a net needs."""
    if net.startswith("st-"):
        return f"net {net} comes with pip install --no-deps stlpips-pytorch==0.0.2, without model"
    file = BACKBONE_FILES[net.rpartition("-")[2]]
    return f"net {net} is {TORCHVISION}{file}, and pip install --no-deps lpips for its linear heads"


def _find_heads(config: PerceptualConfig, backbone: str, base: Path) -> Path:
    if config.heads is not None:
        return base / Path(config.heads).expanduser()
    found = find_packaged("lpips", HEADS_FILE.format(backbone))
    if found is None:
        raise EncoderError(
            f"loss 'perceptual': net {config.net} needs its linear heads: pip install --no-deps"
            f" lpips, or heads: a file of them ({HEADS_FILE.format(backbone)} of that package)"
        )
    return found


def _load(network: networks.Network, layers: Mapping[str, Tensor], path: Path, net: str) -> None:
    """Load the network's weights. Layers that the network doesn't have are ignored.

    Raises:
        EncoderError: weights are missing or have other shapes.
    """
    wanted = network.layers.state_dict()
    missing = [name for name in wanted if name not in layers]
    if missing:
        raise EncoderError(
            f"{path}: {len(missing)} of {len(wanted)} tensors for {net} are not there, such as that"
            f" of layer {missing[0]}; expected names as torchvision (features.0.weight) or LPIPS"
            " (net.slice1.0.weight) gives them"
        )
    other = [name for name in wanted if layers[name].shape != wanted[name].shape]
    if other:
        got, expected = tuple(layers[other[0]].shape), tuple(wanted[other[0]].shape)
        raise EncoderError(
            f"{path}: layer {other[0]} is {got}, and in {net} it is {expected}: these are another"
            " network's weights"
        )
    network.layers.load_state_dict({name: layers[name].float() for name in wanted})


def _check_heads(
    heads: Mapping[int, Tensor], widths: list[int], path: Path, net: str
) -> list[Tensor]:
    """Return the heads in order.

    Raises:
        EncoderError: a head is missing or has another size.
    """
    found = [heads[number].numel() if number in heads else 0 for number in range(len(widths))]
    if found != widths:
        wanted, got = (", ".join(map(str, sizes)) for sizes in (widths, found))
        raise EncoderError(
            f"{path}: expected linear heads lin0.model.1.weight ... of {wanted} channels for {net},"
            f" got {got}"
        )
    return [heads[number] for number in range(len(widths))]

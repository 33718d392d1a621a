"""Networks whose features `rfid` compares: Inception v3 from a weights file, a transformers folder,
or an encoder plugin.

Nothing is downloaded, and no pickle is read: a missing network is an error, never random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latentkit.contracts import BuildContext
from latentkit.encoders.weight_files import read_tensors
from latentkit.errors import EncoderError
from latentkit.losses.features import EncoderFeatures, Features, open_transformers
from latentkit.metrics.inception import FID_CLASSES, build_inception
from latentkit.plugins import discover

if TYPE_CHECKING:
    from latentkit.metrics.options import RfidConfig

IMAGE_RANGE = (0.0, 1.0)
GRID = (16, 16)
"""Size of the feature maps that are averaged: 224 pixels for patches of 14."""
INCEPTION_IS = (
    "Inception v3 for FID is at"
    " https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True)
class FeatureNetwork:
    """A frozen network that turns images into feature vectors.

    Args:
        name: the network's name in the protocol of a metric.
        compute: (N, 3, H, W) float32 in [0, 1] to (N, F).
    """

    name: str
    compute: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, F) of (N, C, H, W) float32 in [0, 1]; gray becomes RGB, and alpha is left
        out.
        """
        with torch.inference_mode():
            return self.compute(images[:, :3].expand(-1, 3, -1, -1))


def open_features(config: RfidConfig, context: BuildContext) -> FeatureNetwork:
    """Open the network that a recipe names, on the context's device.

    Raises:
        EncoderError: the network's file is missing, unreadable, or of another network.
        PluginError, RecipeError: there is no such encoder plugin, or it rejects its options.
    """
    if config.encoder is not None:
        registry = discover()
        name = config.encoder.use
        options = registry.configure(
            "encoder", name, config.encoder.with_, "metric 'rfid': encoder"
        )
        encoder = registry.find("encoder", name).spec.build(options, context)
        return FeatureNetwork(
            f"the encoder {name}, averaged over positions",
            _pooled(EncoderFeatures(encoder, IMAGE_RANGE)),
        )
    assert config.features is not None
    path = context.recipe_dir / Path(config.features).expanduser()
    if path.is_dir():
        features = open_transformers(str(path), path, IMAGE_RANGE)
        return FeatureNetwork(
            f"the network {path.name}, averaged over positions", _pooled(features)
        )
    tensors = read_tensors(path, INCEPTION_IS)
    try:
        network = build_inception(tensors).to(context.device)
    except ValueError as error:
        raise EncoderError(
            f"{path}: expected weights of Inception v3 with torchvision's names: {error}"
        ) from error
    is_fid = "fc.weight" in tensors and tensors["fc.weight"].shape[0] == FID_CLASSES
    kind = (
        "pools as TensorFlow's FID graph of 2015"
        if is_fid
        else "torchvision's weights, which give other values than the FID graph"
    )
    return FeatureNetwork(f"Inception v3 ({path.name}; {kind}; bilinear to 299 x 299)", network)


def _pooled(features: Features) -> Callable[[Tensor], Tensor]:
    return lambda images: features(images, GRID).mean(dim=(2, 3))

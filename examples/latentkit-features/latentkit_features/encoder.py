"""Encoder `features`: no autoencoder, but what a vision model sees in each patch, for trainers that
align latents with it.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from latentkit.contracts import InputSpec, LatentLayout, Normalization, SizeRule
from latentkit.encoders.hashing import hash_tensors
from latentkit.errors import EncoderError
from torch import Tensor

UNUSED = "pooler."
"""Weights behind the last hidden state: folders often have none, and transformers then draws them
at random.
"""

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class FeatureEncoder:
    """The last hidden state of a model of patches, as a map; class and register tokens, which come
    first, are left out.

    Args:
        network: a model of transformers, float32.
        mean, deviation: of each color in [0, 1], as the model's own preprocessing has them.
        device: torch device.
    """

    modality = "image"
    normalization = Normalization()

    def __init__(
        self, network: Any, mean: list[float], deviation: list[float], device: str
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self._patch = network.config.patch_size
        self._colors = torch.tensor([mean, deviation], device=device)[:, :, None, None]
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if takes_any_size else {}
        sizes = {axis: SizeRule(multiple=self._patch) for axis in "HW"}
        self.input = InputSpec(channels=3, sizes=sizes)
        self.layout = LatentLayout(
            "features", "deterministic", "CHW", network.config.hidden_size, self._patch
        )

    @torch.inference_mode()
    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """{"latent": (N, C, H / patch, W / patch)} of a batch (N, 3, H, W) in [-1, 1].

        Raises:
            ValueError: H or W is not a multiple of the patch.
        """
        height, width = (side // self._patch for side in batch.shape[2:])
        if batch.shape[2:] != (height * self._patch, width * self._patch):
            raise ValueError(
                f"height and width must be multiples of {self._patch}, got {tuple(batch.shape[2:])}"
            )
        mean, deviation = self._colors
        pixels = ((batch.to(mean) + 1) / 2 - mean) / deviation
        state: Tensor = self.network(pixel_values=pixels, **self._options).last_hidden_state
        return {"latent": state[:, -height * width :].mT.reshape(len(batch), -1, height, width)}

    def fingerprint(self) -> dict[str, str]:
        """The hash of the weights that `encode` uses, and what is done to colors."""
        used = {
            name: tensor
            for name, tensor in self.network.state_dict().items()
            if not name.startswith(UNUSED)
        }
        return {"weights": hash_tensors(used), "colors": str(self._colors.flatten().tolist())}


def open_features(folder: Path, device: str) -> FeatureEncoder:
    """The encoder in a folder that `save_pretrained` wrote, with its preprocessor_config.json, if
    there is one.

    Raises:
        EncoderError: transformers isn't installed, or the folder holds no vision model of patches.
    """
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder}: expected the folder of a transformers model, with config.json"
        )
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise EncoderError(
            f"{folder}: reading it needs transformers: pip install"
            " 'latentkit-features[transformers]'"
        ) from error
    try:
        network, report = AutoModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise EncoderError(f"{folder}: transformers can't open it: {error}") from error
    if (
        not isinstance(getattr(network.config, "patch_size", None), int)
        or network.main_input_name != "pixel_values"
    ):
        raise EncoderError(
            f"{folder}: expected a vision model of patches, such as DINOv2 or ViT, got"
            f" {type(network).__name__}"
        )
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(UNUSED))
    if missing:
        raise EncoderError(f"{folder}: weights are missing: {', '.join(missing)}")
    mean, deviation = IMAGENET
    path = folder / "preprocessor_config.json"
    preprocessing = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return FeatureEncoder(
        network, preprocessing.get("image_mean", mean), preprocessing.get("image_std", deviation), device
    )

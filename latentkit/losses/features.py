"""Feature networks that latents are aligned with: maps of pictures, computed without gradients."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from latentkit.contracts import Encoder
from latentkit.errors import EncoderError, TrainingError

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_GRID = (4, 4)


class Features(Protocol):
    """A frozen network."""

    channels: int

    def __call__(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features (N, channels, *grid) float32 of pictures (N, C, H, W) in the range of the
        trained model.
        """
        ...


class EncoderFeatures:
    """The latents (means, where there is a posterior) of another encoder, resized to the grid.

    Args:
        input_range: lowest and highest value of the pictures that it is given.

    Raises:
        EncoderError: its latents are not maps.
    """

    def __init__(self, encoder: Encoder, input_range: tuple[float, float]) -> None:
        if encoder.layout.axes != "CHW" or encoder.layout.kind == "quantised":
            raise EncoderError(
                "loss 'feature-alignment': expected latents that are maps (axes CHW, not"
                f" quantized), the encoder's are {encoder.layout.kind} with axes"
                f" {encoder.layout.axes}"
            )
        self.channels = encoder.layout.channels
        self._encoder, self._range = encoder, input_range

    def __call__(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `Features`.

        Raises:
            TrainingError: the encoder doesn't take pictures of this size.
        """
        try:
            found = self._encoder.encode(rescale(pictures, self._range, self._encoder.input.range))
        except ValueError as err:
            raise TrainingError(
                f"loss 'feature-alignment': the encoder of the features refuses the pictures: {err}"
            ) from err
        latents = found["mean"] if "mean" in found else found["latent"]
        return _fit(
            latents.clone().float().to(pictures.device), grid
        )  # a clone, since an encoder's inference tensors can't be trained on


class TransformersFeatures:
    """The last hidden state of a vision model of the library transformers: patch tokens as a map,
    or the map of a convolutional one.

    A model of patches sees the picture resized so that a patch is one position of the grid.
    Register and class tokens come first, and are left out.

    Args:
        model: float32; frozen here.
        mean: of each color, in [0, 1], that the model's own preprocessing takes off.
        deviation: of each color, that it divides by.
        input_range: lowest and highest value of the pictures that it is given.
    """

    def __init__(
        self,
        model: Any,
        mean: list[float],
        deviation: list[float],
        input_range: tuple[float, float],
    ) -> None:
        self._model: nn.Module = model.eval().requires_grad_(False)
        self._patch = _patch_size(model.config)
        self._mean, self._deviation = (
            torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, deviation)
        )
        self._range = input_range
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if takes_any_size else {}
        side = PROBE_GRID[0] * (self._patch or 32)
        self.channels = self(torch.zeros(1, 3, side, side), PROBE_GRID).shape[1]

    def __call__(self, pictures: Tensor, grid: tuple[int, int]) -> Tensor:
        """As `Features`.

        Raises:
            EncoderError: the model gives fewer tokens than it has patches.
        """
        device = pictures.device
        self._model.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            values = rescale(pictures.float(), self._range, (0.0, 1.0)).expand(-1, 3, -1, -1)
            if self._patch:
                size = (grid[0] * self._patch, grid[1] * self._patch)
                values = interpolate(
                    values, size, mode="bilinear", align_corners=False, antialias=True
                )
            normed = (values - self._mean.to(device)) / self._deviation.to(device)
            state: Tensor = self._model(pixel_values=normed, **self._options).last_hidden_state
        if state.ndim == 4:
            return _fit(state, grid)
        num_patches = grid[0] * grid[1]
        if state.shape[1] < num_patches:
            raise EncoderError(
                f"loss 'feature-alignment': the model gives {state.shape[1]} tokens for"
                f" {num_patches} patches of its size"
            )
        return state[:, -num_patches:].mT.reshape(len(state), -1, *grid)


def open_transformers(
    model: str, base: Path, input_range: tuple[float, float]
) -> TransformersFeatures:
    """Open the network in a folder of transformers' `save_pretrained`, relative to `base`.

    Raises:
        EncoderError: transformers isn't installed, or the folder holds no vision model of it.
    """
    folder = base / Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder}: expected the folder of a transformers model, with config.json; it is not"
            " there"
        )
    try:
        from transformers import AutoModel  # type: ignore[import-not-found,unused-ignore]
    except ImportError as err:
        raise EncoderError(
            f"{folder}: reading it needs the library transformers: pip install transformers"
        ) from err
    try:
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        preparation = _read_preparation(folder / "preprocessor_config.json")
        return TransformersFeatures(network, *preparation, input_range)
    except (ImportError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise EncoderError(
            f"{folder}: expected a vision model whose output has last_hidden_state: {reason}"
        ) from err


def rescale(values: Tensor, old: tuple[float, float], new: tuple[float, float]) -> Tensor:
    """Values of one range, (lowest, highest), in another."""
    if old == new:
        return values
    return (values - old[0]) * ((new[1] - new[0]) / (old[1] - old[0])) + new[0]


def _fit(values: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(values.shape[2:]) == grid:
        return values
    return interpolate(values, grid, mode="bilinear", align_corners=False, antialias=True)


def _patch_size(config: Any) -> int:
    """Side in pixels; 0 for a model that has no patches."""
    size = getattr(config, "patch_size", 0)
    return int(size[0] if isinstance(size, list | tuple) else size)


def _read_preparation(path: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of colors; ImageNet's where the file is not there."""
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(values.get("image_mean", IMAGENET_MEAN)), list(
        values.get("image_std", IMAGENET_DEVIATION)
    )

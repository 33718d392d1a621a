"""Feature networks that latents are aligned with: maps of images, computed without gradients."""

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

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROBE_GRID = (4, 4)


class Features(Protocol):
    """A frozen network that turns images into maps of features."""

    channels: int

    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features (N, channels, *grid) float32 of images (N, C, H, W) in the input range of
        the trained model.
        """
        ...


class EncoderFeatures:
    """The latents of another encoder (the means of its posterior if it has one), resized to the
    grid.

    Args:
        input_range: lowest and highest value of the images that it is given.

    Raises:
        EncoderError: the encoder's latents are not maps.
    """

    def __init__(self, encoder: Encoder, input_range: tuple[float, float]) -> None:
        if encoder.layout.axes != "CHW" or encoder.layout.kind == "quantised":
            raise EncoderError(
                "loss 'feature-alignment': expected latents that are maps (axes CHW, not"
                f" quantized), got {encoder.layout.kind} with axes"
                f" {encoder.layout.axes}"
            )
        self.channels = encoder.layout.channels
        self._encoder, self._range = encoder, input_range

    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features; see `Features`.

        Raises:
            TrainingError: the encoder doesn't take images of this size.
        """
        try:
            found = self._encoder.encode(rescale(images, self._range, self._encoder.input.range))
        except ValueError as error:
            raise TrainingError(
                "loss 'feature-alignment': the encoder that gives the features rejects the images:"
                f" {error}"
            ) from error
        latents = found["mean"] if "mean" in found else found["latent"]
        return _resize_to_grid(
            latents.clone().float().to(images.device), grid
        )  # a clone: autograd rejects the inference tensors that an encoder may give


class TransformersFeatures:
    """The last hidden state of a vision model of the library transformers: patch tokens as a map,
    or the map of a convolutional one.

    A model of patches sees the image resized so that a patch is one position of the grid.
    Register and class tokens come first, and are left out.

    Args:
        model: float32; frozen here.
        mean: mean of each color, in [0, 1]; the model's own preprocessing subtracts it.
        std: standard deviation of each color; the preprocessing divides by it.
        input_range: lowest and highest value of the images that it is given.
    """

    def __init__(
        self,
        model: Any,
        mean: list[float],
        std: list[float],
        input_range: tuple[float, float],
    ) -> None:
        self._model: nn.Module = model.eval().requires_grad_(False)
        self._patch = _patch_size(model.config)
        self._mean, self._std = (
            torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std)
        )
        self._range = input_range
        takes_any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if takes_any_size else {}
        side = PROBE_GRID[0] * (self._patch or 32)
        self.channels = self(torch.zeros(1, 3, side, side), PROBE_GRID).shape[1]

    def __call__(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return features; see `Features`.

        Raises:
            EncoderError: the model gives fewer tokens than it has patches.
        """
        device = images.device
        self._model.to(device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            values = rescale(images.float(), self._range, (0.0, 1.0)).expand(-1, 3, -1, -1)
            if self._patch:
                size = (grid[0] * self._patch, grid[1] * self._patch)
                values = interpolate(
                    values, size, mode="bilinear", align_corners=False, antialias=True
                )
            normalized = (values - self._mean.to(device)) / self._std.to(device)
            state: Tensor = self._model(pixel_values=normalized, **self._options).last_hidden_state
        if state.ndim == 4:
            return _resize_to_grid(state, grid)
        num_patches = grid[0] * grid[1]
        if state.shape[1] < num_patches:
            raise EncoderError(
                f"loss 'feature-alignment': expected at least {num_patches} tokens, one per patch,"
                f" got {state.shape[1]}"
            )
        return state[:, -num_patches:].mT.reshape(len(state), -1, *grid)


def open_transformers(
    model: str, base: Path, input_range: tuple[float, float]
) -> TransformersFeatures:
    """Open the network in a folder of transformers' `save_pretrained`, relative to `base`.

    Raises:
        EncoderError: transformers isn't installed, or the folder holds no vision model.
    """
    folder = base / Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder}: expected the folder of a transformers model, with config.json;"
            " there is no such file"
        )
    try:
        from transformers import AutoModel  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise EncoderError(
            f"{folder}: reading it needs the library transformers: pip install transformers"
        ) from error
    try:
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        mean_and_std = _read_mean_and_std(folder / "preprocessor_config.json")
        return TransformersFeatures(network, *mean_and_std, input_range)
    except (ImportError, OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(
            f"{folder}: expected a vision model whose output has last_hidden_state: {reason}"
        ) from error


def rescale(values: Tensor, old: tuple[float, float], new: tuple[float, float]) -> Tensor:
    """Map values linearly from the range `old`, (lowest, highest), to the range `new`."""
    if old == new:
        return values
    return (values - old[0]) * ((new[1] - new[0]) / (old[1] - old[0])) + new[0]


def _resize_to_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(values.shape[2:]) == grid:
        return values
    return interpolate(values, grid, mode="bilinear", align_corners=False, antialias=True)


def _patch_size(config: Any) -> int:
    """Return the side of a patch in pixels; 0 for a model without patches."""
    size = getattr(config, "patch_size", 0)
    return int(size[0] if isinstance(size, list | tuple) else size)


def _read_mean_and_std(path: Path) -> tuple[list[float], list[float]]:
    """Read each color's mean and standard deviation; ImageNet's where there is no file."""
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return list(values.get("image_mean", IMAGENET_MEAN)), list(
        values.get("image_std", IMAGENET_STD)
    )

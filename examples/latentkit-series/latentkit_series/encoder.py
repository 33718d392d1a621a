"""Encoder `series-kl`: series to raw latents and back; it can be trained and saved."""

from __future__ import annotations

from pathlib import Path

import torch
from latentkit.contracts import (
    BuildContext,
    Config,
    InputSpec,
    LatentLayout,
    Normalization,
    SizeRule,
)
from latentkit.encoders.hashing import hash_tensors
from latentkit.errors import EncoderError
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentkit_series.network import DOWNSCALE, SeriesKL
from latentkit_series.plugin import SeriesKLConfig

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Description(Config):
    """The content of config.json: the network's shape, and the measured statistics of its latents.
    """

    channels: int
    latent_channels: int
    width: int
    latents_mean: list[float] | None = Field(None, description="per channel, of raw latents")
    latents_std: list[float] | None = Field(None, description="per channel, of a draw")


class SeriesKLEncoder:
    """Satisfies `Encoder`, `Decodes` and `Trainable`.

    Args:
        description: of the network.
        module: the network, which training trains and `encode` uses.
        device: torch device.
    """

    modality = "series"

    def __init__(self, description: Description, module: SeriesKL, device: str) -> None:
        self._description = description
        self.module: nn.Module = module.to(device)
        self._network = module
        sizes = {"L": SizeRule(multiple=DOWNSCALE, minimum=DOWNSCALE)}
        self.input = InputSpec(channels=description.channels, sizes=sizes, axes="CL")
        channels = description.latent_channels
        self.layout = LatentLayout("latent", "gaussian", "CL", channels, DOWNSCALE)

    @property
    def normalization(self) -> Normalization:
        """Per channel, (z - mean) / standard deviation, once they were measured; else nothing."""
        mean, std = self._description.latents_mean, self._description.latents_std
        if mean is None or std is None:
            return Normalization()
        return Normalization(shift=mean, scale=[1 / value for value in std])

    @torch.inference_mode()
    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return "mean" and "logvar", each (N, latent_channels, L / 8), unscaled.

        Args:
            batch: (N, channels, L) float32 in [-1, 1].

        Raises:
            ValueError: L is not a multiple of 8.
        """
        if batch.shape[-1] % DOWNSCALE:
            raise ValueError(f"length must be a multiple of {DOWNSCALE}, got {batch.shape[-1]}")
        moments = self._network.encode(self._moved(batch))
        return {"mean": moments.mean, "logvar": moments.logvar}

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Return series (N, channels, L) of raw latents (N, latent_channels, L / 8)."""
        return self._network.decode(self._moved(latents))

    def fingerprint(self) -> dict[str, str]:
        """Return hashes of both halves; the decoder's doesn't decide latents."""
        halves = {"weights": self._network.encoder, "decoder": self._network.decoder}
        return {name: hash_tensors(half.state_dict()) for name, half in halves.items()}

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last layer, where adaptive weights are measured."""
        weight = self._network.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Keep what training measured of raw latents, (latent_channels,) each, for `save`."""
        measured = {"latents_mean": mean.tolist(), "latents_std": std.tolist()}
        self._description = self._description.model_copy(update=measured)

    def save(self, folder: Path) -> None:
        """Write what `model: FOLDER` reads: config.json and the weights."""
        text = self._description.model_dump_json(indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        weights = {name: value.cpu() for name, value in self.module.state_dict().items()}
        save_file(weights, folder / WEIGHTS, {"format": "pt"})

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor.to(next(self.module.parameters()))  # training may have moved the network


def open_series_kl(config: SeriesKLConfig, context: BuildContext) -> SeriesKLEncoder:
    """Return the encoder in a folder that training wrote, or one with random weights.

    Raises:
        EncoderError: the folder holds no such model.
    """
    if config.model is None:
        description = Description(**config.model_dump(exclude={"model"}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            return SeriesKLEncoder(description, _network(description), context.device)
    folder = context.recipe_dir / Path(config.model).expanduser()
    try:
        description = Description.model_validate_json((folder / CONFIG).read_bytes())
        network = _network(description)
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        expected = "expected a folder that training of series-kl wrote"
        raise EncoderError(f"{folder}: {expected}: {error}") from error
    return SeriesKLEncoder(description, network, context.device)


def _network(description: Description) -> SeriesKL:
    shape = description.model_dump(include={"channels", "latent_channels", "width"})
    return SeriesKL(**shape)

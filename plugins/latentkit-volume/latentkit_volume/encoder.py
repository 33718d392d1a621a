"""Encoder `volume-kl`: encodes volumes to latents and back, with random weights to train or from a
folder that training wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentkit.contracts import BuildContext, InputSpec, LatentLayout, Normalization, SizeRule
from latentkit.encoders.hashing import hash_tensors
from latentkit.errors import EncoderError
from latentkit.kit import memory_format
from latentkit_volume.network import Architecture, VolumeKL
from latentkit_volume.plugin import VolumeKLConfig

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"


class ModelConfig(Architecture):
    """Content of config.json."""

    kind: Literal["volume-kl"] = "volume-kl"
    latents_mean: tuple[float, ...] | None = Field(
        None, description="mean of each raw latent channel; none before it is measured"
    )
    latents_std: tuple[float, ...] | None = Field(
        None,
        description="standard deviation of a posterior draw of each; none before it is measured",
    )


def open_volume_kl(config: VolumeKLConfig, context: BuildContext) -> VolumeKLEncoder:
    """Return the encoder with the weights that `config` names, or random ones, on the context's
    device.

    Raises:
        EncoderError: the folder contains no such model, or its weights don't fit its config.json.
    """
    dtype = getattr(torch, config.dtype)
    if config.model is not None:
        folder = context.recipe_dir / Path(config.model).expanduser()
        described = read_config(folder)
        return VolumeKLEncoder(described, read_network(folder, described), dtype, context.device)
    described = ModelConfig(**config.model_dump(include=set(Architecture.model_fields)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)
        return VolumeKLEncoder(described, VolumeKL(described), dtype, context.device)


class VolumeKLEncoder:
    """Encodes volumes to latents at a quarter or an eighth of their size, and decodes them;
    satisfies `Encoder`, `Decodes` and `Trainable`.

    Args:
        config: config of the network, and the statistics of its latents.
        network: moved to the device and to the dtype it computes in.
    """

    modality = "volume"

    def __init__(
        self, config: ModelConfig, network: VolumeKL, dtype: torch.dtype, device: str
    ) -> None:
        self._config, self._dtype = config, dtype
        self._network = network.to(device, dtype)
        self.module: nn.Module = network
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous(
                memory_format=memory_format(device, parameter.ndim)
            )
        sizes = {
            axis: SizeRule(multiple=config.downscale, minimum=config.downscale) for axis in "DHW"
        }
        self.input = InputSpec(channels=config.channels, sizes=sizes, axes="CDHW")
        self.layout = LatentLayout(
            "latent", "gaussian", "CDHW", config.latent_channels, config.downscale
        )

    @property
    def normalization(self) -> Normalization:
        """Return (z - latents_mean) / latents_std per channel if the model has measured values,
        else no normalization.
        """
        if self._config.latents_mean is None or self._config.latents_std is None:
            return Normalization()
        return Normalization(
            shift=self._config.latents_mean,
            scale=tuple(1 / std for std in self._config.latents_std),
        )

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return the posterior moments of a batch of volumes.

        Args:
            batch: (N, C, D, H, W) float32 in [-1, 1]; D, H and W divisible by `layout.downscale`.

        Returns:
            "mean" and "logvar", each (N, latent channels, D / f, H / f, W / f), unscaled, in the
            encoder's dtype; logvar in [-30, 20].

        Raises:
            ValueError: the shape is another one; the message names it.
        """
        channels, factor = self.input.channels, self._config.downscale
        if (
            batch.ndim != 5
            or batch.shape[1] != channels
            or any(size % factor or not size for size in batch.shape[2:])
        ):
            found = " x ".join(map(str, batch.shape))
            raise ValueError(
                f"volume-kl: expected (N, {channels}, D, H, W) with D, H and W divisible by"
                f" {factor}, got {found}"
            )
        with torch.inference_mode():
            moments = self._network.encode(self._move_to_network(batch))
        return {"mean": moments.mean, "logvar": moments.logvar}

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents to volumes.

        Args:
            latents: (N, latent channels, d, h, w), unscaled.

        Returns:
            (N, C, f d, f h, f w) in the encoder's dtype, approximately in [-1, 1], not clamped.

        Raises:
            ValueError: the shape is another one; the message names it.
        """
        if latents.ndim != 5 or latents.shape[1] != self.layout.channels:
            found = " x ".join(map(str, latents.shape))
            raise ValueError(
                f"volume-kl: expected latents (N, {self.layout.channels}, d, h, w), got {found}"
            )
        with torch.inference_mode():
            return self._network.decode(self._move_to_network(latents))

    def fingerprint(self) -> dict[str, str]:
        """Return hashes of both halves' tensors in the dtype they compute in: "weights" decides the
        latents, "decoder" doesn't.
        """
        network = self._network
        return {
            "weights": hash_tensors(network.encoder.state_dict()),
            "decoder": hash_tensors(network.decoder.state_dict()),
        }

    # ------------------------------------------------------------ training

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last convolution."""
        weight = self._network.decoder.voxels.weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the measured mean and standard deviation of raw latents per channel, (latent
        channels,) each, for what `save` writes.
        """
        measured = {"latents_mean": tuple(mean.tolist()), "latents_std": tuple(std.tolist())}
        self._config = self._config.model_copy(update=measured)

    def save(self, folder: Path) -> None:
        """Write config.json and the weights as float32."""
        tensors = {
            name: tensor.to("cpu", torch.float32).contiguous()
            for name, tensor in self._network.state_dict().items()
        }
        (folder / CONFIG_NAME).write_text(
            self._config.model_dump_json(indent=2) + "\n", encoding="utf-8"
        )
        save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    # ------------------------------------------------------------ inside

    def _move_to_network(self, batch: Tensor) -> Tensor:
        device = next(self.module.parameters()).device  # training may have moved the network
        return batch.to(device=device, dtype=self._dtype)


def read_config(folder: Path) -> ModelConfig:
    """Read a model folder's config.json.

    Raises:
        EncoderError: the file is missing or is another model's.
    """
    path = folder / CONFIG_NAME
    try:
        found = ModelConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise EncoderError(
            f"{path}: {error.strerror}; expected the folder of a volume-kl model, with"
            f" {WEIGHTS_NAME} in it too"
        ) from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise EncoderError(
            f"{path}: not that of a volume-kl model:"
            f" {where + ': ' if where else ''}{problem['msg']}"
        ) from error
    for name in ("latents_mean", "latents_std"):
        values = getattr(found, name)
        if values is not None and len(values) != found.latent_channels:
            raise EncoderError(
                f"{path}: {name}: expected {found.latent_channels} numbers, got {len(values)}"
            )
    return found


def read_network(folder: Path, config: ModelConfig) -> VolumeKL:
    """Return the network with a folder's weights, float32 on the CPU.

    Raises:
        EncoderError: the weights can't be read or don't fit the config; the message names the
            tensors.
    """
    path = folder / WEIGHTS_NAME
    with torch.device("meta"):
        network = VolumeKL(config)
    try:
        network.load_state_dict(load_file(path), assign=True)
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{path}: the weights can't be read: {error}") from error
    except RuntimeError as error:
        first, *others = [line.strip() for line in str(error).splitlines()[1:]]
        more = f" (and {len(others)} more)" if others else ""
        raise EncoderError(
            f"{path}: the weights don't fit the {CONFIG_NAME} beside them: {first}{more}"
        ) from error
    return network

"""Encoder `diffusers`: one driver for diffusers' autoencoders, by the table in `diffusers_table`."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentkit.contracts import BuildContext, InputSpec, LatentLayout, Moments, Normalization, Reconstruction, SizeRule
from latentkit.encoders.diffusers_loading import find_model, load_model, new_model, probe, read_config
from latentkit.encoders.diffusers_table import TRAITS, computing_config, read_latents, read_normalization
from latentkit.encoders.hashing import hash_tensors
from latentkit.errors import EncoderError

if TYPE_CHECKING:
    from latentkit.builtin import DiffusersConfig

def open_diffusers(config: DiffusersConfig, context: BuildContext) -> DiffusersEncoder:
    """The encoder of a recipe. Weights are read when first needed.

    Raises:
        EncoderError: there is no such model, or its class isn't driven.
    """
    config_file = context.recipe_dir / Path(config.config).expanduser() if config.config else None
    path = find_model(config.model, config.subfolder, config.revision, context.recipe_dir) if config.model else None
    return DiffusersEncoder(path, config_file, getattr(torch, config.dtype), config.tiling, context.device, context.seed)


class DiffusersEncoder:
    """An `Encoder` that `Decodes` and is `Trainable`, around a diffusers model.

    Args:
        path: folder or single file of the weights; None starts with random ones.
        config_file: config.json of random weights, or of a single file.
        dtype: the network computes in this.
        tiling: encode large pictures in overlapping tiles.
        device: torch device.
        seed: of random weights.
    """

    def __init__(
        self, path: Path | None, config_file: Path | None, dtype: torch.dtype, tiling: bool, device: str, seed: int = 0
    ) -> None:
        self._path, self._config_file, self._dtype, self._tiling = path, config_file, dtype, tiling
        self._device, self._seed = device, seed
        self._decoder_hash = ""
        self._config = read_config(_config_place(path, config_file))
        self._traits = TRAITS[self._config["_class_name"]]
        self.modality = self._traits.modality
        self._complete_config, channels, downscale = probe(self._config)
        sides = SizeRule(multiple=downscale, minimum=downscale)
        self.input = InputSpec(channels=int(self._config.get("in_channels", 3)), sizes={"H": sides, "W": sides})
        self.layout = LatentLayout("latent", self._traits.kind, self._traits.axes, channels, downscale)

    @property
    def normalization(self) -> Normalization:
        """As the model's own pipelines do it."""
        return read_normalization(self._config)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Posterior moments, or latents, of a batch of images.

        Args:
            batch: (N, 3, H, W) in [-1, 1]; H and W divisible by `layout.downscale`.

        Returns:
            "mean" and "logvar" (in [-30, 20]), or "latent", each (N, C, H / f, W / f), unscaled, in the encoder's dtype.

        Raises:
            ValueError: H or W not divisible by f.
        """
        for axis, size in zip(self.layout.axes[1:], batch.shape[2:], strict=True):
            if not self.input.sizes[axis].allows(size):
                raise ValueError(f"{axis} of a batch is {size}; the encoder takes {self.input.sizes[axis]}")
        images = batch.to(self._device, self._dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            return read_latents(self._encoding_half.encode(images))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (N, C, h, w) to images (N, 3, H, W), about [-1, 1], float32."""
        with torch.inference_mode():
            decoded = self._decoding_half.decode(latents.to(self._device, self._dtype)).sample
        return decoded.float()  # type: ignore[no-any-return]

    def compile(self) -> None:
        """Compile the encoding half, a graph per shape: which one a batch runs, and so its bits, must not depend on the batches before."""
        self._encoding_half.encoder.compile(dynamic=False)

    def fingerprint(self) -> dict[str, str]:
        """Class and config, hash of the tensors that `encode` uses in the dtype it uses them in, tiling; "decoder" apart."""
        text = json.dumps(computing_config(self._complete_config), sort_keys=True)
        parts = {
            "class": self._config["_class_name"],
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "weights": hash_tensors(self._encoding_half.state_dict()),
            "decoder": self._decoder_hash,
        }
        return parts | ({"tiling": "on"} if self._tiling else {})

    # ------------------------------------------------------------ training

    @functools.cached_property
    def module(self) -> nn.Module:
        """The whole model, float32; its forward takes (N, 3, H, W) in [-1, 1] and gives a `Reconstruction` of a draw."""
        if self._path is not None:
            model = load_model(self._path, self._config_file, torch.float32)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                model = new_model(_config_place(self._path, self._config_file))
        return TrainedModel(model.train().requires_grad_(True).to(self._device))

    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last convolution."""
        model = self.module.model
        assert isinstance(model, nn.Module)
        names = dict(model.named_parameters())
        wanted = self._traits.last_layer
        if "{last}" in wanted:
            prefix = wanted.split("{last}")[0]
            wanted = wanted.format(last=max(int(name.removeprefix(prefix).split(".")[0]) for name in names if name.startswith(prefix)))
        return names[wanted]

    def save(self, folder: Path) -> None:
        """A folder that any `from_pretrained` loads, with the config as it stands."""
        model: Any = self.module.model
        model.save_pretrained(folder)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Put measured statistics of a draw per channel, (C,) each, into the config that `save` writes.

        The model's own pipelines apply per-channel fields *and* `scaling_factor`, so the pair shift and scale over all channels is what
        every one of them, the oldest included, gets right: the per-channel fields stay empty.
        """
        model: Any = self.module.model
        centre = float(mean.double().mean())
        spread = float((std.double().square() + (mean.double() - centre).square()).mean().sqrt())
        fields = {"scaling_factor": 1.0 / spread, "shift_factor": centre, "latents_mean": None, "latents_std": None}
        model.register_to_config(**{name: value for name, value in fields.items() if name in model.config})

    # ------------------------------------------------------------ inside

    @functools.cached_property
    def _encoding_half(self) -> Any:
        if self._path is None:
            raise EncoderError("a model with random weights (option config) can be trained, but not encode; give its weights as model")
        model = load_model(self._path, self._config_file, self._dtype)
        tensors = model.state_dict()
        self._decoder_hash = hash_tensors({name: tensors[name] for name in tensors if name.startswith(self._traits.decoder)})
        _forget(model, self._traits.decoder)
        if self._tiling:
            model.enable_tiling()
        return model.to(self._device, memory_format=torch.channels_last)

    @functools.cached_property
    def _decoding_half(self) -> Any:
        if self._path is None:
            raise EncoderError("a model with random weights (option config) can be trained, but not decode; give its weights as model")
        model = load_model(self._path, self._config_file, self._dtype)
        kept = {prefix.rstrip(".") for prefix in self._traits.decoder}
        _forget(model, tuple(name for name, _ in model.named_children() if name not in kept))
        return model.to(self._device)


class TrainedModel(nn.Module):
    """A diffusers autoencoder whose forward is that of the contract `Trainable`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Tensor) -> Reconstruction:
        """(N, 3, H, W) in [-1, 1] to the reconstruction of a draw from the posterior (or of the latents, where there is none)."""
        latents = read_latents(self.model.encode(batch))
        if "latent" in latents:
            return Reconstruction(self.decode(latents["latent"]), latents["latent"])
        mean, logvar = latents["mean"], latents["logvar"]
        draw = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return Reconstruction(self.decode(draw), draw, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (N, C, h, w) to (N, 3, H, W)."""
        decoded: Tensor = self.model.decode(latents).sample
        return decoded


def _config_place(path: Path | None, config_file: Path | None) -> Path:
    if path is not None and path.is_dir():
        return path
    if config_file is not None:
        return config_file
    if path is not None and path.with_name("config.json").is_file():
        return path.with_name("config.json")
    raise EncoderError(f"{path}: a single file needs the model's config.json beside it, or named by the option config")


def _forget(model: nn.Module, names: tuple[str, ...]) -> None:
    """Drop sub-modules, so that they neither take memory nor count as the encoder's."""
    for name in names:
        setattr(model, name.rstrip("."), None)

"""Encoder `diffusers`: one driver for diffusers' autoencoders, by the table in `diffusers_table`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from latentkit.contracts import BuildContext, Moments, Normalization, Reconstruction, Remark
from latentkit.contracts.encoder_description import readable_input
from latentkit.encoders.diffusers_adapter import ModelAdapter
from latentkit.encoders.diffusers_loading import (
    FoundModel,
    build_model,
    find_config_file,
    find_model,
    forget,
    load_model,
    look_at_model,
    read_config,
    read_some,
)
from latentkit.encoders.diffusers_normalization import (
    PLACES,
    has_statistics,
    put_statistics,
    read_normalization,
)
from latentkit.encoders.diffusers_sizes import measure_model, prepare_model
from latentkit.encoders.diffusers_table import computing_config
from latentkit.encoders.hashing import hash_tensors
from latentkit.encoders.hub import hub_commit
from latentkit.errors import EncoderError
from latentkit.runtime.device import is_out_of_memory, memory_format

if TYPE_CHECKING:
    from latentkit.encoders.options import DiffusersConfig

ENCODING_ONLY = ("encoder", "quant_conv")
"""Modules that no `decode` uses."""


def open_diffusers(config: DiffusersConfig, context: BuildContext) -> DiffusersEncoder:
    """The encoder of a recipe. Weights are read when first needed.

    Raises:
        EncoderError: there is no such model, its class isn't driven, or an option doesn't fit it.
    """
    config_file = find_config_file(config.config, context.recipe_dir) if config.config else None
    path = None
    if config.model:
        path = find_model(
            config.model,
            config.subfolder,
            config.revision,
            context.recipe_dir,
            context.modality,
            config.variant,
        )
    dtype = getattr(torch, config.dtype)
    options: dict[str, Any] = {
        "seed": context.seed,
        "modality": context.modality,
        "indices": config.indices,
        "variant": config.variant,
    }
    encoder = DiffusersEncoder(path, config_file, dtype, config.tiling, context.device, **options)
    if not encoder.lacks_decoder:
        return encoder
    return DiffusersEncoderAlone(path, config_file, dtype, config.tiling, context.device, **options)


class DiffusersEncoder:
    """An `Encoder` that `Decodes` and is `Trainable`, around a diffusers model.

    Args:
        path: folder or single file of the weights; None starts with random ones.
        config_file: config.json of random weights, or of a single file.
        dtype: the network computes in this.
        tiling: encode large inputs in overlapping tiles.
        modality: name of the recipe's, for classes that take several; the class's usual one where
            it doesn't take that.
        indices: give indices into the model's codebook; None: as is usual for its class.
        variant: of the weights, such as "fp16", where there are several.
    """

    def __init__(
        self,
        path: Path | None,
        config_file: Path | None,
        dtype: torch.dtype,
        tiling: bool,
        device: str,
        seed: int = 0,
        modality: str = "",
        indices: bool | None = None,
        variant: str | None = None,
    ) -> None:
        self._path, self._variant, self._dtype, self._tiling = path, variant, dtype, tiling
        self._device, self._seed = device, seed
        self._decoder_hash = ""
        self._found = _find(path, config_file, variant, modality)
        self._config_place = self._found.config_file
        self._config = read_config(self._config_place)
        measured = measure_model(self._config, modality, indices, tiling)
        self._driver: ModelAdapter = measured.driver
        self._traits = measured.driver.traits
        self._complete_config = measured.config
        self.modality, self.input, self.layout = measured.modality, measured.input, measured.layout
        self._mel_rows = (
            int(self.input.mel.bins // self._downscale("M")) if self.input.mel is not None else 0
        )
        self.lacks_decoder = self._found.lacks_decoder
        self._check_statistics()
        self.input = readable_input(self.input, self.layout, self._read_normalization(None))

    def remarks(self) -> Iterator[Remark]:
        """What a user should know of the weights that were taken, and of their dtype."""
        yield from self._found.remarks
        if self._dtype == torch.float16 and self._config.get("force_upcast"):
            fix = "set on_overflow: retry-fp32, or the encoder's dtype to bfloat16 or float32"
            said = f"{self._config_place}: force_upcast is true"
            yield Remark(f"{said}, so computing in float16 may overflow; {fix}")

    @property
    def normalization(self) -> Normalization:
        """As the model's own pipelines do it."""
        return self._read_normalization(self.statistics if has_statistics(self._traits) else None)

    def _read_normalization(self, tensors: Mapping[str, Tensor] | None) -> Normalization:
        return read_normalization(
            self._complete_config, self._traits, self.layout, tensors, self._mel_rows
        )

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Posterior moments, latents or indices of a batch.

        Args:
            batch: (N, *input.axes), such as (N, 3, H, W), in `input.range`, of sizes that
                `input.sizes` allows.

        Returns:
            "mean" and "logvar" (in [-30, 20]), "latent" or "indices", each (N, *layout.axes), such
            as (N, C, H / f, W / f), unscaled, in the encoder's dtype.

        Raises:
            ValueError: another number of axes or channels, or a size that the model would cut or
                pad.
        """
        self._check(batch)
        with torch.inference_mode():
            return self._driver.encode(self.encoding_half, batch.to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents or indices, (N, *layout.axes), to a batch like the input, (N, *input.axes),
        about in its range, float32.

        Raises:
            EncoderError: the decoder can't take them, as where the config gives it other channels
                than the encoder.
        """
        latents = (
            latents.to(self._device)
            if self._driver.indices
            else latents.to(self._device, self._dtype)
        )
        model = self.decoding_half
        try:
            with torch.inference_mode():
                return self._driver.decode(model, latents).float()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(
                f"the decoder of {self._config['_class_name']} can't take latents of shape"
                f" {tuple(latents.shape)}: {error}; the encoder's have {self.layout.channels}"
                f" channels: look at what {self._config_place} gives its decoder"
            ) from error

    def compile(self) -> None:
        """Compile the encoding half, a graph per shape: earlier batches must change no bits."""
        self.encoding_half.encoder.compile(dynamic=False)

    def fingerprint(self) -> dict[str, str]:
        """Return class, config, hash of the tensors that `encode` uses in their dtype, tiling.

        Recorded only: "decoder", and of a model of the hub "hub_commit", which is
        owner/name@commit.
        """
        text = json.dumps(
            computing_config(self._complete_config, self._traits, self._tiling), sort_keys=True
        )
        tensors = self.encoding_half.state_dict()
        parts = {
            "class": self._config["_class_name"],
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "weights": hash_tensors(
                {name: tensors[name] for name in tensors if name.split(".")[0] not in PLACES}
            ),
            "decoder": self._decoder_hash,
        }
        commit = hub_commit(self._path)
        return (
            parts
            | ({"tiling": "on"} if self._tiling else {})
            | ({"hub_commit": commit} if commit else {})
        )

    # ------------------------------------------------------------ training

    @functools.cached_property
    def module(self) -> nn.Module:
        """The whole model, float32; its forward takes a batch in `input.range` and gives a
        `Reconstruction` of a draw.

        Raises:
            EncoderError: the model has a codebook, which needs losses of its own.
        """
        if self._traits.codebook:
            raise EncoderError(
                f"{self._config['_class_name']} can't be trained here: its codebook needs losses of"
                " its own"
            )
        if self.lacks_decoder:
            raise EncoderError(f"{self._path} holds no decoder, so it can't be trained")
        if self._path is not None:
            model = load_model(self._path, self._config_place, torch.float32, self._variant)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                model = build_model(self._config)
        prepare_model(model, self._traits, self._tiling)
        return TrainedModel(model.train().requires_grad_(True).to(self._device), self._driver)

    def last_layer(self) -> nn.Parameter:
        """Weight of the decoder's last layer."""
        model = self.module.model
        assert isinstance(model, nn.Module)
        decoder, ending = self._traits.decoder[0], self._traits.last_layer
        weights = [
            weight
            for name, weight in model.named_parameters()
            if name.startswith(f"{decoder}.") and weight.ndim > 1 and name.endswith(ending)
        ]
        return weights[-1]

    def save(self, folder: Path) -> None:
        """A folder that any `from_pretrained` loads, with the config as it stands."""
        model: Any = self.module.model
        model.save_pretrained(folder)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Put statistics of a draw per channel, (C,) each, where `save` writes them."""
        put_statistics(self.module.model, self._traits, mean, std)

    # ------------------------------------------------------------ inside

    def _check_statistics(self) -> None:
        """Hold the number of shifts and scales, which the config decides, to the latents."""
        traits, sizes = self._traits, {}
        if traits.statistics == "config" and not self._driver.indices:
            sizes = {
                name: np.size(self._complete_config[name])
                for name in PLACES
                if self._complete_config.get(name) is not None
            }
        elif has_statistics(traits):
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                model = build_model(self._config)
            sizes = {
                name: values.numel()
                for name, values in model.named_buffers()
                if name.startswith(PLACES) and values.ndim
            }
        channels = self.layout.channels * math.prod(
            factor or self._mel_rows for factor in traits.fold.values()
        )
        for name, size in sizes.items():
            per_frame = (
                "T" in traits.axes
                and traits.statistics == "config"
                and size > 0
                and size % channels == 0
            )
            if size != channels and not per_frame:
                raise EncoderError(
                    f"{self._config_place}: by it {name} has {size} values for latents of"
                    f" {channels} channels, so that they can't be normalized; fix the config"
                )

    def _check(self, batch: Tensor) -> None:
        axes, channels = self.input.axes, self.input.channels
        if batch.ndim != len(axes) + 1 or batch.shape[1] != channels:
            raise ValueError(
                f"expected a batch (N, {channels}, {', '.join(axes[1:])}), got {tuple(batch.shape)}"
            )
        for axis, size in zip(axes[1:], batch.shape[2:], strict=True):
            rule = self.input.sizes.get(axis)
            if rule is not None and not rule.allows(size):
                raise ValueError(f"{axis} of a batch is {size}; the encoder takes {rule}")

    def _downscale(self, axis: str) -> int | float:
        factors = self.layout.downscale
        return factors if isinstance(factors, int) else factors[self.input.axes.index(axis) - 1]

    def _load(self, what: str) -> Any:
        if self._path is None:
            raise EncoderError(
                f"a model with random weights (option config) can be trained, but not {what}; give"
                " its weights as model"
            )
        model = load_model(self._path, self._config_place, self._dtype, self._variant)
        prepare_model(model, self._traits, self._tiling)
        return model

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Statistics among the model's tensors, (C,) each, float32, as in its file.

        Not those of the halves, which are rounded to the dtype that these compute in.
        """
        return self._trained_statistics if self._path is None else self._stored_statistics

    @property
    def _trained_statistics(self) -> Mapping[str, Tensor]:
        model: Any = self.module.model
        return {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.split(".")[0] in PLACES
        }

    @functools.cached_property
    def _stored_statistics(self) -> Mapping[str, Tensor]:
        assert self._path is not None
        return read_some(self._path, self._config_place, PLACES, self._variant)

    @functools.cached_property
    def encoding_half(self) -> Any:
        """The model in eval mode without its decoder, in the encoder's dtype and on its device;
        loaded when first asked for.
        """
        model = self._load("encode")
        tensors = model.state_dict()
        self._decoder_hash = hash_tensors(
            {name: tensors[name] for name in tensors if name.split(".")[0] in self._traits.decoder}
        )
        forget(
            model,
            tuple(
                name
                for name in self._traits.decoder
                if not (self._driver.indices and name == self._traits.codebook)
            ),
        )
        takes_form = self._traits.axes == "CHW" and all(
            weight.ndim <= 4 for weight in model.parameters()
        )
        form = memory_format(self._device, 4) if takes_form else torch.preserve_format
        return model.to(self._device, memory_format=form)

    @functools.cached_property
    def decoding_half(self) -> Any:
        """The model without what only encodes, likewise."""
        model = self._load("decode")
        forget(model, ENCODING_ONLY)
        return model.to(self._device)


class DiffusersEncoderAlone(DiffusersEncoder):
    """One whose weights have no decoder, so that it is no `Decodes`."""

    decode = None  # type: ignore[assignment]


class TrainedModel(nn.Module):
    """A diffusers autoencoder whose forward is that of the contract `Trainable`."""

    def __init__(self, model: Any, driver: ModelAdapter) -> None:
        super().__init__()
        self.model = model
        self._driver = driver

    def forward(self, batch: Tensor) -> Reconstruction:
        """Return the reconstruction of a draw from a batch's posterior, or of latents."""
        latents = self._driver.encode(self.model, batch)
        if "latent" in latents:
            return Reconstruction(self.decode(latents["latent"]), latents["latent"])
        mean, logvar = latents["mean"], latents["logvar"]
        draw = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return Reconstruction(self.decode(draw), draw, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        """Raw latents (N, *layout.axes) to a batch like the input."""
        return self._driver.decode(self.model, latents)


def _find(
    path: Path | None, config_file: Path | None, variant: str | None, modality: str
) -> FoundModel:
    if path is not None:
        return look_at_model(path, config_file, variant, modality)
    assert config_file is not None  # by the recipe
    return FoundModel(config_file)

"""Encoder `diffusers`: every autoencoder class of diffusers, called as `diffusers_table` describes
it.
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
    drop_modules,
    find_config_file,
    find_model,
    inspect_model,
    load_model,
    read_config,
    read_named_tensors,
)
from latentkit.encoders.diffusers_normalization import (
    STATISTICS_NAMES,
    has_statistics,
    put_statistics,
    read_normalization,
)
from latentkit.encoders.diffusers_sizes import measure_model, prepare_model
from latentkit.encoders.diffusers_table import encode_config
from latentkit.encoders.hashing import hash_tensors
from latentkit.encoders.hub import hub_commit
from latentkit.errors import EncoderError
from latentkit.runtime.device import is_out_of_memory, memory_format

if TYPE_CHECKING:
    from latentkit.encoders.options import DiffusersConfig

ENCODING_ONLY = ("encoder", "quant_conv")
"""Modules that no `decode` uses."""


def open_diffusers(config: DiffusersConfig, context: BuildContext) -> DiffusersEncoder:
    """Return the encoder that a recipe names. Its weights are read when they are first needed.

    Raises:
        EncoderError: there is no such model, its class isn't supported, or an option
            doesn't fit it.
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
    return EncodeOnlyDiffusersEncoder(
        path, config_file, dtype, config.tiling, context.device, **options
    )


class DiffusersEncoder:
    """An `Encoder`, `Decodes` and `Trainable` around a diffusers model.

    Args:
        path: folder or single file of the weights; None means random weights.
        config_file: config.json to build a model with random weights, or the one of a single
            weights file.
        dtype: the dtype that the network computes in.
        tiling: encode large inputs in overlapping tiles.
        device: torch device.
        seed: seed of random weights.
        modality: the recipe's modality, for classes that accept several; a class that doesn't
            accept it uses its first one.
        indices: whether to return indices into the model's codebook; None is the class's default.
        variant: which weights to load, such as "fp16", if there are several.
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
        self._adapter: ModelAdapter = measured.adapter
        self._traits = measured.adapter.traits
        self._complete_config = measured.config
        self.modality, self.input, self.layout = measured.modality, measured.input, measured.layout
        self._mel_rows = (
            int(self.input.mel.bins // self._downscale("M")) if self.input.mel is not None else 0
        )
        self.lacks_decoder = self._found.lacks_decoder
        self._check_statistics()
        self.input = readable_input(self.input, self.layout, self._read_normalization(None))

    def remarks(self) -> Iterator[Remark]:
        """Yield what a user should know about the chosen weights and their dtype."""
        yield from self._found.remarks
        if self._dtype == torch.float16 and self._config.get("force_upcast"):
            fix = "set on_overflow: retry-fp32, or the encoder's dtype to bfloat16 or float32"
            problem = f"{self._config_place}: force_upcast is true"
            yield Remark(f"{problem}, so computing in float16 may overflow; {fix}")

    @property
    def normalization(self) -> Normalization:
        """Return the shift and scale that the model's own pipelines apply."""
        return self._read_normalization(self.statistics if has_statistics(self._traits) else None)

    def _read_normalization(self, tensors: Mapping[str, Tensor] | None) -> Normalization:
        return read_normalization(
            self._complete_config, self._traits, self.layout, tensors, self._mel_rows
        )

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        """Return posterior moments, latents or indices of a batch.

        Args:
            batch: (N, *input.axes), such as (N, 3, H, W), in `input.range`, of sizes that
                `input.sizes` allows.

        Returns:
            "mean" and "logvar" (in [-30, 20]), "latent" or "indices", each (N, *layout.axes), such
            as (N, C, H / f, W / f), unscaled, in the encoder's dtype.

        Raises:
            ValueError: the batch has a wrong number of axes or channels, or a size that the model
                would crop or pad.
        """
        self._check(batch)
        with torch.inference_mode():
            return self._adapter.encode(self.encoding_half, batch.to(self._device))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents or indices, (N, *layout.axes), to a float32 batch like the input, (N,
        *input.axes), with values approximately in `input.range`.

        Raises:
            EncoderError: the decoder doesn't accept these latents, for example because the config
                gives it other channels than the encoder.
        """
        latents = (
            latents.to(self._device)
            if self._adapter.indices
            else latents.to(self._device, self._dtype)
        )
        model = self.decoding_half
        try:
            with torch.inference_mode():
                return self._adapter.decode(model, latents).float()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise EncoderError(
                f"the decoder of {self._config['_class_name']} can't take latents of shape"
                f" {tuple(latents.shape)}: {error}; the encoder's latents have"
                f" {self.layout.channels} channels. Check the decoder's channels in"
                f" {self._config_place}"
            ) from error

    def compile(self) -> None:
        """Compile the encoding half, with one graph per shape.

        The graph that encodes a batch, and so the last bits of its latents, must not depend on
        earlier batches.
        """
        self.encoding_half.encoder.compile(dynamic=False)

    def fingerprint(self) -> dict[str, str]:
        """Return the class, hashes of the config and of the weights that `encode` uses (in the
        dtype it computes in), and the tiling.

        Recorded but not compared: "decoder", and "hub_commit" (owner/name@commit) of a model from
        the hub.
        """
        text = json.dumps(
            encode_config(self._complete_config, self._traits, self._tiling), sort_keys=True
        )
        tensors = self.encoding_half.state_dict()
        parts = {
            "class": self._config["_class_name"],
            "config": hashlib.sha256(text.encode()).hexdigest(),
            "weights": hash_tensors(
                {
                    name: tensors[name]
                    for name in tensors
                    if name.split(".")[0] not in STATISTICS_NAMES
                }
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
        """Return the whole model in float32. Its forward takes a batch in `input.range` and returns
        the `Reconstruction` of one posterior draw.

        Raises:
            EncoderError: the model has a codebook, which needs special losses, or has no decoder.
        """
        if self._traits.codebook:
            raise EncoderError(
                f"{self._config['_class_name']} can't be trained here: its codebook needs special"
                " losses"
            )
        if self.lacks_decoder:
            raise EncoderError(f"{self._path} contains no decoder, so it can't be trained")
        if self._path is not None:
            model = load_model(self._path, self._config_place, torch.float32, self._variant)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                model = build_model(self._config)
        prepare_model(model, self._traits, self._tiling)
        return TrainedModel(model.train().requires_grad_(True).to(self._device), self._adapter)

    def last_layer(self) -> nn.Parameter:
        """Return the weight of the decoder's last layer."""
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
        """Write a folder that any `from_pretrained` loads, with the current config."""
        model: Any = self.module.model
        model.save_pretrained(folder)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store the measured mean and standard deviation of posterior draws, per channel, (C,)
        each, where pipelines look for them in what `save` writes.
        """
        put_statistics(self.module.model, self._traits, mean, std)

    # ------------------------------------------------------------ inside

    def _check_statistics(self) -> None:
        """Check that the config has as many shifts and scales as the latents have channels. This
        needs no weights.
        """
        traits, sizes = self._traits, {}
        if traits.statistics == "config" and not self._adapter.indices:
            sizes = {
                name: np.size(self._complete_config[name])
                for name in STATISTICS_NAMES
                if self._complete_config.get(name) is not None
            }
        elif has_statistics(traits):
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                model = build_model(self._config)
            sizes = {
                name: values.numel()
                for name, values in model.named_buffers()
                if name.startswith(STATISTICS_NAMES) and values.ndim
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
                    f"{self._config_place}: {name} has {size} values, but the latents have"
                    f" {channels} channels, so they can't be normalized. Fix the config"
                )

    def _check(self, batch: Tensor) -> None:
        """Check the axes, channels and sizes of a batch."""
        axes, channels = self.input.axes, self.input.channels
        if batch.ndim != len(axes) + 1 or batch.shape[1] != channels:
            raise ValueError(
                f"expected a batch (N, {channels}, {', '.join(axes[1:])}), got {tuple(batch.shape)}"
            )
        for axis, size in zip(axes[1:], batch.shape[2:], strict=True):
            rule = self.input.sizes.get(axis)
            if rule is not None and not rule.allows(size):
                raise ValueError(f"{axis} of the batch is {size}; the encoder accepts {rule}")

    def _downscale(self, axis: str) -> int | float:
        """Return the factor by which the encoder reduces the size along one axis."""
        factors = self.layout.downscale
        return factors if isinstance(factors, int) else factors[self.input.axes.index(axis) - 1]

    def _load(self, what: str) -> Any:
        """Return the model with its weights, ready to `encode` or `decode` as `what` names."""
        if self._path is None:
            raise EncoderError(
                f"a model with random weights (option config) can be trained but can't {what}. Give"
                " weights with the option model"
            )
        model = load_model(self._path, self._config_place, self._dtype, self._variant)
        prepare_model(model, self._traits, self._tiling)
        return model

    @property
    def statistics(self) -> Mapping[str, Tensor]:
        """Return the statistics among the model's tensors, (C,) each, float32, as in its file.

        They aren't read from the halves, where they are rounded to the dtype of computation.
        """
        return self._trained_statistics if self._path is None else self._stored_statistics

    @property
    def _trained_statistics(self) -> Mapping[str, Tensor]:
        """Return the statistics among the tensors of the model that is trained."""
        model: Any = self.module.model
        return {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.split(".")[0] in STATISTICS_NAMES
        }

    @functools.cached_property
    def _stored_statistics(self) -> Mapping[str, Tensor]:
        assert self._path is not None
        return read_named_tensors(self._path, self._config_place, STATISTICS_NAMES, self._variant)

    @functools.cached_property
    def encoding_half(self) -> Any:
        """Return the model in eval mode without its decoder, in the encoder's dtype and on its
        device. It is loaded at the first call.
        """
        model = self._load("encode")
        tensors = model.state_dict()
        self._decoder_hash = hash_tensors(
            {name: tensors[name] for name in tensors if name.split(".")[0] in self._traits.decoder}
        )
        drop_modules(
            model,
            tuple(
                name
                for name in self._traits.decoder
                if not (self._adapter.indices and name == self._traits.codebook)
            ),
        )
        takes_form = self._traits.axes == "CHW" and all(
            weight.ndim <= 4 for weight in model.parameters()
        )
        form = memory_format(self._device, 4) if takes_form else torch.preserve_format
        return model.to(self._device, memory_format=form)

    @functools.cached_property
    def decoding_half(self) -> Any:
        """Return the model in the same state without the parts that only encode."""
        model = self._load("decode")
        drop_modules(model, ENCODING_ONLY)
        return model.to(self._device)


class EncodeOnlyDiffusersEncoder(DiffusersEncoder):
    """An encoder whose weights contain no decoder, so it doesn't satisfy `Decodes`."""

    decode = None  # type: ignore[assignment]


class TrainedModel(nn.Module):
    """A diffusers autoencoder with the forward that the contract `Trainable` asks for."""

    def __init__(self, model: Any, adapter: ModelAdapter) -> None:
        super().__init__()
        self.model = model
        self._adapter = adapter

    def forward(self, batch: Tensor) -> Reconstruction:
        """Return the reconstruction of a batch from one posterior draw, or from the latents of a
        deterministic model.
        """
        latents = self._adapter.encode(self.model, batch)
        if "latent" in latents:
            return Reconstruction(self.decode(latents["latent"]), latents["latent"])
        mean, logvar = latents["mean"], latents["logvar"]
        draw = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        return Reconstruction(self.decode(draw), draw, Moments(mean, logvar))

    def decode(self, latents: Tensor) -> Tensor:
        """Decode raw latents (N, *layout.axes) to a batch like the input."""
        return self._adapter.decode(self.model, latents)


def _find(
    path: Path | None, config_file: Path | None, variant: str | None, modality: str
) -> FoundModel:
    """Return what is known of a model without its weights: from its folder or file, or from the
    config alone.
    """
    if path is not None:
        return inspect_model(path, config_file, variant, modality)
    assert config_file is not None  # by the recipe
    return FoundModel(config_file)

"""The setup of the checks for encoders: an encoder, batches for it, and their latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from latentkit.contracts import Encoder, EncoderSpec, NamedSpec
from latentkit.testing.batches import Batch, allowed_sizes, axes_of, mask_along
from latentkit.testing.latents import encode_without_mask, flip_bit
from latentkit.testing.plugin import PluginContract


class EncoderSetup(PluginContract):
    """Methods of `EncoderContract` that a plugin's author can override, and helpers of its checks.
    """

    spec_type: ClassVar[type[NamedSpec]] = EncoderSpec
    protocols: ClassVar[tuple[type, ...]] = (Encoder,)

    tolerance: float = 1e-4
    """Largest difference, absolute and relative, between latents of batches of different sizes; set
    it higher for half precision.
    """

    trains: bool = True
    """Set to False for a config that can't be trained, such as one in half precision."""

    stores_statistics: bool = True
    """Set to False if `save` can't write the statistics of `set_statistics`."""

    # ------------------------------------------------------------ what a plugin author overrides

    def make_encoder(self, tmp_path: Path) -> Encoder:
        """Return the encoder under test."""
        encoder: Encoder = self.build(tmp_path)
        return encoder

    def sizes(self, encoder: Encoder) -> Sequence[tuple[int, ...]]:
        """Return two small input sizes that the encoder's rules allow, each with one number per
        axis of `input.axes` except C.
        """
        small = [allowed_sizes(encoder.input, axis) for axis in axes_of(encoder)]
        return [
            tuple(sizes[0] for sizes in small),
            tuple(sizes[number % 2] for number, sizes in enumerate(small, start=1)),
        ]

    def make_batch(self, encoder: Encoder, sizes: tuple[int, ...], num_rows: int) -> Batch:
        """Return prepared rows as the encoder's modality would, always the same: (N, C, *sizes)
        float32 in its range.

        For an encoder that takes a mask, a mapping of "values" and "mask", (N, sizes[0]), 1 where a
        position counts.
        """
        low, high = encoder.input.range
        channels = (encoder.input.channels,) if "C" in encoder.input.axes else ()
        noise = torch.rand(
            (num_rows, *channels, *sizes), generator=torch.Generator().manual_seed(num_rows)
        )
        values = low + (high - low) * noise
        return (
            {"values": values, "mask": mask_along(sizes[0], num_rows)}
            if encoder.input.takes_mask
            else values
        )

    def perturb(self, encoder: Encoder) -> Encoder | None:
        """Change one bit of one weight that `encode` uses, and return the encoder or another one;
        None for an encoder without weights.

        By default it is the first parameter of the first module among the encoder's attributes,
        after a first `encode`.
        """
        modules = [value for value in vars(encoder).values() if isinstance(value, nn.Module)]
        parameters = [
            parameter
            for module in modules
            for parameter in module.parameters()
            if not parameter.is_meta
        ]
        assert parameters, (
            "no attribute of the encoder is an nn.Module with parameters: override perturb(), or"
            " let it return None"
        )
        flip_bit(parameters[0].data)
        return encoder

    def make_renormalized(self, tmp_path: Path) -> Encoder | None:
        """Return an encoder with the same weights but another `normalization`; None if there is
        none.
        """
        return None

    def make_trained_config(self, tmp_path: Path, folder: Path) -> BaseModel | None:
        """Return the config that opens the folder that `Trainable.save` wrote; None if there is
        none.

        By default its option `model` is the folder, and all other options have their defaults.
        """
        known = "model" in self.spec.config.model_fields
        return self.spec.config.model_validate({"model": str(folder)}) if known else None

    # ------------------------------------------------------------ for the checks

    def encode(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return the latents of two rows of the first size, without their mask."""
        return encode_without_mask(encoder, self.make_batch(encoder, self.sizes(encoder)[0], 2))

    def encode_all(self, encoder: Encoder) -> dict[str, Tensor]:
        """Return everything that `encode` returns for two rows of the first size."""
        batch: Any = self.make_batch(encoder, self.sizes(encoder)[0], 2)
        return encoder.encode(batch)

    def latents_of(self, encoder: Encoder, batch: Batch) -> Tensor:
        """Return the latents of a batch that `decode` takes ("mean", "latent" or "indices"),
        copied.
        """
        latents = encode_without_mask(encoder, batch)
        return next(
            latents[name] for name in ("mean", "latent", "indices") if name in latents
        ).clone()

"""Calls of any diffusers autoencoder, as its `ModelTraits` say: prepared batches to latents under
our names, and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.encoders.diffusers_table import ModelTraits
from latentkit.errors import EncoderError
from latentkit.runtime.device import memory_format


@dataclass(frozen=True)
class ModelAdapter:
    """How one model is called. A batch is (N, *axes), in the input's range; latents are unscaled.

    Args:
        axes: of one prepared input; those of the class, but for T where a video class is given
            pictures or a picture class videos.
        indices: latents are indices into the codebook, without a channel axis.
    """

    traits: ModelTraits
    axes: str
    indices: bool = False

    @property
    def kind(self) -> Literal["gaussian", "deterministic", "quantised"]:
        """Of the latents, as in `LatentLayout`."""
        return "quantised" if self.indices else self.traits.kind

    def encode(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        """Latents of a batch: "mean" and "logvar" (in [-30, 20]), "latent" or "indices", in the
        dtype the model gives.
        """
        if not self.traits.one_by_one or len(batch) == 1:
            return self._encode(model, batch)
        parts = [self._encode(model, row[None]) for row in batch.unbind()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        """The batch that latents stand for, in the dtype the model gives."""
        if not self.traits.one_by_one or len(latents) == 1:
            return self._decode(model, latents)
        return torch.cat([self._decode(model, row[None]) for row in latents.unbind()])

    # ------------------------------------------------------------ inside

    def _encode(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        inputs = self._enter(batch, 2)
        if self.traits.pixel_mean:
            inputs = (inputs.float() - _per_channel(self.traits.pixel_mean, inputs)) / _per_channel(
                self.traits.pixel_std, inputs
            )
        if self.traits.pads_front:
            inputs = torch.cat(
                [inputs[:, :, :1]] * (model.temporal_compression_ratio - 1) + [inputs], dim=2
            )
        encoder = getattr(model, "encoder", None)
        weight = next((model if encoder is None else encoder).parameters())
        form = (
            memory_format(weight.device, 4)
            if self.traits.axes == "CHW"
            else torch.contiguous_format
        )
        inputs = inputs.to(weight.device, weight.dtype, memory_format=form)
        try:
            output = model.encode(inputs, **self.traits.encode_options)
        except BaseException:
            # What is cached of a batch that failed would make every later one fail.
            if self.traits.recover:
                getattr(model, self.traits.recover)()
            raise
        latents = self._choose(model, read_latents(output))
        return {
            name: self._leave(tensor, len(batch), 1 if self.indices else 2)
            for name, tensor in latents.items()
        }

    def _choose(self, model: Any, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Of all that `encode` gave, what is stored."""
        if self.indices:
            return {
                "indices": (
                    latents["indices"]
                    if "indices" in latents
                    else _find_indices(model, latents["latent"])
                )
            }
        if self.traits.kind == "gaussian" and "mean" in latents:
            return {name: latents[name] for name in ("mean", "logvar")}
        return {"latent": latents["mean" if "mean" in latents else "latent"]}

    def _decode(self, model: Any, latents: Tensor) -> Tensor:
        options = dict(self.traits.decode_options)
        if "num_frames" in options and "T" in self.axes:
            options["num_frames"] = latents.shape[2]
        inputs = self._enter(latents, 1 if self.indices else 2)
        if self.indices:
            inputs, how = _look_up(model, self.traits.codebook, inputs)
            options |= how
        if getattr(model.config, "timestep_conditioning", False):
            options["temb"] = inputs.new_zeros(len(inputs))
        output = model.decode(inputs, **options)
        decoded: Tensor = output if isinstance(output, Tensor) else output.sample
        decoded = self._leave(
            decoded.transpose(1, 2) if self.traits.decodes_frames_first else decoded,
            len(latents),
            2,
        )
        if self.traits.pixel_mean:
            decoded = decoded.float() * _per_channel(self.traits.pixel_std, decoded) + _per_channel(
                self.traits.pixel_mean, decoded
            )
        return decoded

    def _enter(self, tensor: Tensor, time: int) -> Tensor:
        """A tensor with or without T, as the class has it; `time` is where T stands, or would."""
        if "T" in self.traits.axes and "T" not in self.axes:
            return tensor.unsqueeze(time)
        if "T" in self.axes and "T" not in self.traits.axes:
            return tensor.movedim(time, 1).flatten(0, 1)
        return tensor

    def _leave(self, tensor: Tensor, num_rows: int, time: int) -> Tensor:
        """The inverse of `_enter`."""
        if "T" in self.traits.axes and "T" not in self.axes:
            return tensor.squeeze(time)
        if "T" in self.axes and "T" not in self.traits.axes:
            return tensor.reshape(num_rows, -1, *tensor.shape[1:]).movedim(1, time)
        return tensor


def read_latents(output: Any) -> dict[str, Tensor]:
    """What `encode` of any class gave, under our names: "mean" and "logvar", or "latent", and
    "indices" where there are some.

    Raises:
        EncoderError: it is of no known form.
    """
    if isinstance(output, tuple):
        named = {} if len(output) == 1 else {"indices": output[1]}
        return read_latents(output[0]) | named
    if isinstance(output, Tensor):
        return {"latent": output}
    for name in ("latents", "latent"):
        if isinstance(latent := getattr(output, name, None), Tensor):
            return {"latent": latent}
    posterior = getattr(output, "latent_dist", output)
    if hasattr(posterior, "mean") and hasattr(posterior, "std"):
        logvar = posterior.logvar if hasattr(posterior, "logvar") else 2 * posterior.std.log()
        return {"mean": posterior.mean, "logvar": logvar.clamp(*LOGVAR_RANGE)}
    if hasattr(posterior, "mode"):
        return {"latent": posterior.mode()}
    raise EncoderError(
        f"encode gave {type(output).__name__}, which has neither a latent_dist (with mean and std,"
        " or mode) nor latents nor latent"
    )


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).reshape(-1, *[1] * (like.ndim - 2))


def _find_indices(model: Any, latent: Tensor) -> Tensor:
    """Indices (N, h, w) of a `VQModel`'s continuous latents (N, C, h, w)."""
    found: Tensor = model.quantize(latent)[2][2]
    return found.reshape(len(latent), *latent.shape[2:])


def _look_up(model: Any, codebook: str, indices: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What `decode` takes for indices: its first argument, and further ones."""
    if codebook != "quantize":
        return indices, {"decode_from_indices": True}
    shape = (*indices.shape, model.quantize.vq_embed_dim)
    if model.config.lookup_from_codebook:
        return indices.reshape(-1), {"force_not_quantize": True, "shape": shape}
    return model.quantize.get_codebook_entry(indices.reshape(-1), shape), {
        "force_not_quantize": True
    }

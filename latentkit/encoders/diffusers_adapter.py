"""Calls any diffusers autoencoder as its `ModelTraits` describe: from prepared batches to latents
under latentkit's names, and back.
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
    """Calls one model. A batch is (N, *axes) in the input's range; latents are unscaled.

    Args:
        traits: description of the model's class.
        axes: axes of one prepared input. They are the class's axes, except for T: a video class may
            be given images, and an image class videos.
        indices: whether latents are indices into the codebook, without a channel axis.
    """

    traits: ModelTraits
    axes: str
    indices: bool = False

    @property
    def kind(self) -> Literal["gaussian", "deterministic", "quantised"]:
        """Return the kind of the latents, as in `LatentLayout`."""
        return "quantised" if self.indices else self.traits.kind

    def encode(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        """Return latents of a batch: "mean" and "logvar" (in [-30, 20]), "latent" or "indices", in
        the dtype that the model returns.
        """
        if not self.traits.one_by_one or len(batch) == 1:
            return self._encode(model, batch)
        parts = [self._encode(model, row[None]) for row in batch.unbind()]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def decode(self, model: Any, latents: Tensor) -> Tensor:
        """Decode latents to a batch, in the dtype that the model returns."""
        if not self.traits.one_by_one or len(latents) == 1:
            return self._decode(model, latents)
        return torch.cat([self._decode(model, row[None]) for row in latents.unbind()])

    # ------------------------------------------------------------ inside

    def _encode(self, model: Any, batch: Tensor) -> dict[str, Tensor]:
        """Call the model's `encode` on a batch in the model's own axes and value range."""
        inputs = self._match_model_axes(batch, 2)
        if self.traits.pixel_mean:
            inputs = (
                inputs.float() - _channel_values(self.traits.pixel_mean, inputs)
            ) / _channel_values(self.traits.pixel_std, inputs)
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
            # What the model cached of the failed batch would make every later batch fail.
            if self.traits.recover:
                getattr(model, self.traits.recover)()
            raise
        latents = self._select_stored(model, read_latents(output))
        return {
            name: self._restore_axes(tensor, len(batch), 1 if self.indices else 2)
            for name, tensor in latents.items()
        }

    def _select_stored(self, model: Any, latents: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Select which of the tensors that `encode` returned are stored."""
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
        """Call the model's `decode` on latents or indices."""
        options = dict(self.traits.decode_options)
        if "num_frames" in options and "T" in self.axes:
            options["num_frames"] = latents.shape[2]
        inputs = self._match_model_axes(latents, 1 if self.indices else 2)
        if self.indices:
            inputs, how = _look_up(model, self.traits.codebook, inputs)
            options |= how
        if getattr(model.config, "timestep_conditioning", False):
            options["temb"] = inputs.new_zeros(len(inputs))
        output = model.decode(inputs, **options)
        decoded: Tensor = output if isinstance(output, Tensor) else output.sample
        decoded = self._restore_axes(
            decoded.transpose(1, 2) if self.traits.decodes_frames_first else decoded,
            len(latents),
            2,
        )
        if self.traits.pixel_mean:
            decoded = decoded.float() * _channel_values(
                self.traits.pixel_std, decoded
            ) + _channel_values(self.traits.pixel_mean, decoded)
        return decoded

    def _match_model_axes(self, tensor: Tensor, time: int) -> Tensor:
        """Add or remove the axis T (at position `time`) so that the tensor has the class's axes.

        For a video class an image becomes a clip of one frame. For an image class every frame of a
        video becomes an image.
        """
        if "T" in self.traits.axes and "T" not in self.axes:
            return tensor.unsqueeze(time)
        if "T" in self.axes and "T" not in self.traits.axes:
            return tensor.movedim(time, 1).flatten(0, 1)
        return tensor

    def _restore_axes(self, tensor: Tensor, num_rows: int, time: int) -> Tensor:
        """Undo `_match_model_axes`."""
        if "T" in self.traits.axes and "T" not in self.axes:
            return tensor.squeeze(time)
        if "T" in self.axes and "T" not in self.traits.axes:
            return tensor.reshape(num_rows, -1, *tensor.shape[1:]).movedim(1, time)
        return tensor


def read_latents(output: Any) -> dict[str, Tensor]:
    """Return the output of any class's `encode` under latentkit's names: "mean" and "logvar", or
    "latent"; and "indices" if it has them.

    Raises:
        EncoderError: the output has an unknown form.
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
        f"encode returned {type(output).__name__}, which has neither a latent_dist (with mean and"
        " std, or mode) nor latents nor latent"
    )


def _channel_values(values: tuple[float, ...], like: Tensor) -> Tensor:
    """Return one value per channel, shaped to broadcast over `like`, (N, C, ...)."""
    return torch.tensor(values, device=like.device).reshape(-1, *[1] * (like.ndim - 2))


def _find_indices(model: Any, latent: Tensor) -> Tensor:
    """Return the codebook indices (N, h, w) of a `VQModel`'s continuous latents (N, C, h, w)."""
    found: Tensor = model.quantize(latent)[2][2]
    return found.reshape(len(latent), *latent.shape[2:])


def _look_up(model: Any, codebook: str, indices: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Return the first argument and the keyword arguments with which `decode` takes indices."""
    if codebook != "quantize":
        return indices, {"decode_from_indices": True}
    shape = (*indices.shape, model.quantize.vq_embed_dim)
    if model.config.lookup_from_codebook:
        return indices.reshape(-1), {"force_not_quantize": True, "shape": shape}
    return model.quantize.get_codebook_entry(indices.reshape(-1), shape), {
        "force_not_quantize": True
    }

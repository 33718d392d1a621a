"""What a `LatentEncoder` gives of a batch, or of a single input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import LatentLayout, Normalization
from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.runtime.masks import MASK

TENSORS = ("mean", "logvar", "indices", "mask")


@dataclass(frozen=True, repr=False)
class EncodedLatents:
    """Latents of a batch, (N, C, h, w), or of a single input, (C, h, w), on the encoder's device.

    All but `latents` are raw: as the network gives them, in the dtype in which it computes, and as
    `latentkit.encode` stores them.

    Args:
        mean: of the posterior; of a deterministic encoder the latent itself. None of a quantized
            encoder.
        logvar: natural logarithm of the posterior's variance, in [-30, 20]; None where the encoder
            has no posterior.
        indices: into the codebook of a quantized encoder, (N, h, w) integers; None of others.
        mask: which positions count, bool, of inputs of different length; None where all do.
        layout, normalization: of the encoder.
    """

    mean: Tensor | None
    logvar: Tensor | None
    indices: Tensor | None
    mask: Tensor | None
    layout: LatentLayout
    normalization: Normalization

    @property
    def latents(self) -> Tensor:
        """What a trainer sees: the mode, normalized as `data[i]["latent"]` with posterior="mean"
        is, in float32; of a quantized encoder its indices.

        A draw as a trainer sees it is `encoder.normalize(encoded.sample())`.
        """
        if self.indices is not None:
            return self.indices
        return self.normalization.apply(self.mode().float(), self.layout.axes)

    def mode(self) -> Tensor:
        """The most likely latent, raw: the mean, or indices."""
        found = self.mean if self.indices is None else self.indices
        assert found is not None
        return found

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the posterior, raw; the mode where there is no posterior.

        Args:
            generator: of torch, on any device; None takes the encoder's device's own.
        """
        if self.mean is None or self.logvar is None:
            return self.mode()
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean.device)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.mode().shape))
        kind = "posterior" if self.logvar is not None else self.layout.kind
        dtype = str(self.mode().dtype).removeprefix("torch.")
        return f"EncodedLatents ({shape}), {kind}, {dtype} on {self.mode().device}"


def as_encoded(
    latents: Mapping[str, Tensor], layout: LatentLayout, normalization: Normalization
) -> EncodedLatents:
    """Return what `encode_batch` gave, so that a network trained on it can keep it."""
    own = {
        name: (one.clone() if one.is_inference() else one).contiguous()
        for name, one in latents.items()
    }
    logvar = own.get("logvar")
    return EncodedLatents(
        own.get("mean", own.get("latent")),
        None if logvar is None else logvar.clamp(*LOGVAR_RANGE),
        own.get("indices"),
        own.get(MASK),
        layout,
        normalization,
    )


def join_batches(parts: Sequence[EncodedLatents]) -> EncodedLatents:
    """Return several batches as one.

    Raises:
        ValueError: they are of several shapes.
    """
    shapes = list(dict.fromkeys(tuple(part.mode().shape[1:]) for part in parts))
    if len(shapes) > 1:
        raise ValueError(
            f"the files give latents of the shapes {shapes[0]} and {shapes[1]}, which are no batch;"
            " encode those of each shape by themselves"
        )
    tensors = {name: [getattr(part, name) for part in parts] for name in TENSORS}
    whole: dict[str, Any] = {
        name: torch.cat(found) for name, found in tensors.items() if found[0] is not None
    }
    return replace(parts[0], **whole)


def take_first(batch: EncodedLatents) -> EncodedLatents:
    """Return the first row of a batch, without the axis that counts rows."""
    tensors = {name: getattr(batch, name) for name in TENSORS}
    rows: dict[str, Any] = {name: one[0] for name, one in tensors.items() if one is not None}
    return replace(batch, **rows)

"""The result of a `LatentEncoder` for a batch or a single input."""

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

    Everything except `latents` is raw: as the network returns it, in the dtype it computes in, and
    as `latentkit.encode` stores it.

    Args:
        mean: mean of the posterior; for a deterministic encoder the latent itself; None for a
            quantized encoder.
        logvar: natural logarithm of the posterior's variance, in [-30, 20]; None if the encoder has
            no posterior.
        indices: indices into the codebook of a quantized encoder, (N, h, w) integers; None for
            others.
        mask: which positions count, bool, if inputs have different lengths; None if all count.
        layout, normalization: those of the encoder.
    """

    mean: Tensor | None
    logvar: Tensor | None
    indices: Tensor | None
    mask: Tensor | None
    layout: LatentLayout
    normalization: Normalization

    @property
    def latents(self) -> Tensor:
        """Return what a trainer uses: the mode, normalized like `data[i]["latent"]` with
        posterior="mean", in float32; for a quantized encoder its indices.

        A draw for a trainer is `encoder.normalize(encoded.sample())`.
        """
        if self.indices is not None:
            return self.indices
        return self.normalization.apply(self.mode().float(), self.layout.axes)

    def mode(self) -> Tensor:
        """Return the most likely latent, raw: the mean, or indices."""
        found = self.mean if self.indices is None else self.indices
        assert found is not None
        return found

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Return a raw draw from the posterior; the mode if there is no posterior.

        Args:
            generator: torch generator on any device; None uses the default one of the encoder's
                device.
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
    """Return the result of `encode_batch` outside torch's inference mode, so that a network can be
    trained on it.
    """
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
        ValueError: their shapes differ.
    """
    shapes = list(dict.fromkeys(tuple(part.mode().shape[1:]) for part in parts))
    if len(shapes) > 1:
        raise ValueError(
            f"the files give latents with the shapes {shapes[0]} and {shapes[1]}, which can't form"
            " a batch. Encode the files of each shape separately"
        )
    tensors = {name: [getattr(part, name) for part in parts] for name in TENSORS}
    whole: dict[str, Any] = {
        name: torch.cat(found) for name, found in tensors.items() if found[0] is not None
    }
    return replace(parts[0], **whole)


def take_first(batch: EncodedLatents) -> EncodedLatents:
    """Return the first row of a batch, without the batch axis."""
    tensors = {name: getattr(batch, name) for name in TENSORS}
    rows: dict[str, Any] = {name: one[0] for name, one in tensors.items() if one is not None}
    return replace(batch, **rows)

"""`LatentEncoder`: the result of `latentkit.encoder`, an encoder to use directly, without a
dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentkit.contracts import Decodes, Encoder, Modality, Normalization
from latentkit.contracts.encoder_description import readable_input
from latentkit.encoding.batch_tensors import check_layout, encode_batch
from latentkit.encoding.encoded_latents import (
    EncodedLatents,
    as_encoded,
    join_batches,
    take_first,
)
from latentkit.encoding.given_files import prepare_files
from latentkit.errors import EncoderError
from latentkit.reading.raw_latents import find_raw_latents

if TYPE_CHECKING:
    from latentkit.encoding.given_files import GivenFile

OpenModality = Callable[[Any], Modality]
"""Takes a size, or None for the default one, and returns the modality that prepares files for the
encoder.
"""

MAX_OVERSHOOT = 0.5
"""How far an image's values may exceed the range, relative to its width: resampling overshoots a
little, but 0 to 255 is a mistake.
"""


class LatentEncoder:
    """An encoder with its decoder on a device. It converts tensors or files to latents, and back.

    Results have no gradients; to train an encoder use `task: train`.

    Attributes:
        layout: axes, channels, kind and downscale of its latents.
        input: what it takes: axes, channels, range, and sizes whose latents can be normalized.
        modality: name of what it takes, such as "image".

    Args:
        name: name of the encoder, as the user gave it.
        device: its device, such as "cpu" or "cuda:0".
        dtype: the dtype it computes in, such as "float32"; empty if it has no choice.
        open_decoder: returns the same encoder in float32 if it has a choice, because half precision
            may overflow when decoding.
        open_modality: returns the modality that prepares files.
        find_parts: returns `fingerprint`.
        takes_texts: whether a `str` is the media itself instead of the path of a file.

    Attributes:
        layout: axes, channels, kind and downscale of its latents.
        input: what it takes: axes, channels, range, and sizes whose latents can be normalized.
        modality: name of what it takes, such as "image".
    """

    def __init__(
        self,
        name: str,
        encoder: Encoder,
        device: str,
        dtype: str,
        open_decoder: Callable[[], Encoder],
        open_modality: OpenModality,
        find_parts: Callable[[], Mapping[str, str]],
        takes_texts: bool = False,
    ) -> None:
        check_layout(encoder)
        self.name, self.device, self.dtype = name, device, dtype
        self.layout, self.modality = encoder.layout, encoder.modality
        self.input = readable_input(encoder.input, encoder.layout, encoder.normalization)
        self._encoder, self._open_decoder = encoder, open_decoder
        self._open_modality, self._find_parts = open_modality, find_parts
        self._takes_texts = takes_texts
        self._modalities: dict[Any, Modality] = {}

    @property
    def normalization(self) -> Normalization:
        """Return the map from raw latents to what a trainer uses: (fold(z) - shift) * scale."""
        return self._encoder.normalization

    @property
    def fingerprint(self) -> dict[str, str]:
        """Return the names and values of everything that affects its latents, like the parts
        "encoder..." of dataset.json: hash of the weights, dtype, options. Reads the weights.
        """
        return dict(self._find_parts())

    def __repr__(self) -> str:
        low, high = self.input.range
        takes = ", ".join([str(self.input.channels), *self.input.axes[1:]])
        sizes = "".join(f"; {axis} {rule}" for axis, rule in self.input.sizes.items())
        gives = ", ".join(
            str(self.layout.channels) if axis == "C" else axis.lower() for axis in self.layout.axes
        )
        lines = {
            "takes": f"{self.modality} ({takes}) in [{low:g}, {high:g}]{sizes}",
            "gives": f"{self.layout.kind} latents ({gives}), downscale {self.layout.downscale}",
            "normalized by": _describe(self.normalization),
            "decodes": "yes" if isinstance(self._encoder, Decodes) else "no",
        }
        on = ", ".join(filter(None, [self.device, self.dtype]))
        text = [f"  {name:13}  {line}" for name, line in lines.items()]
        return "\n".join([f"LatentEncoder {self.name} on {on}", *text])

    # ------------------------------------------------------------ encoding

    def encode(
        self,
        inputs: Tensor | Mapping[str, Tensor] | GivenFile | Sequence[GivenFile],
        size: int | Sequence[int] | None = None,
        batch_size: int = 8,
    ) -> EncodedLatents:
        """Encode tensors, or files prepared like those of `latentkit.encode`.

        Args:
            inputs: a batch (N, C, H, W) in `input.range`, any float dtype and device, encoded at
                once; or a single input (C, H, W), whose latents have no N either. Axes are those of
                `input.axes`. For encoders with `input.takes_mask`, a mapping of such batches. Or
                the path of a file, a PIL image, a `Sample`, or a list of these; or texts for an
                encoder of texts.
            size: only for files: the modality's size, such as the side of images in pixels or
                [height, width]; None is its default, or the nearest that the encoder accepts.
            batch_size: files that are encoded at once.

        Raises:
            ValueError: the shape, dtype or size isn't accepted; the message names the nearest
                sizes.
            SourceError: the file doesn't exist.
            SampleError: a file can't be prepared; the message says why.
            EncoderError: the encoder can't be loaded, or returns other latents than it declares.
        """
        if isinstance(inputs, Tensor | Mapping):
            if size is not None:
                raise ValueError("size is only for files; a tensor already has a size")
            return self._encode_tensors(inputs)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        is_list = isinstance(inputs, Sequence) and not isinstance(inputs, str | bytes)
        files: Sequence[GivenFile] = inputs if is_list else [inputs]  # type: ignore[list-item, assignment]
        if not files:
            raise ValueError("no file to encode")
        modality, parts = self._modality(size), []
        for start in range(0, len(files), batch_size):
            chosen = files[start : start + batch_size]
            parts.append(self._run(prepare_files(chosen, modality, self._takes_texts)))
        encoded = join_batches(parts)
        return encoded if is_list else take_first(encoded)

    def decode(self, latents: Tensor | Mapping[str, Any] | EncodedLatents) -> Tensor:
        """Decode normalized latents to float32, like `data.decode`.

        Args:
            latents: (N, C, h, w) as in `EncodedLatents.latents` and trainers, or a single one,
                whose output has no N either; indices of a quantized encoder; a dataset's item or
                batch; or an `EncodedLatents`, whose mode is decoded.

        Returns:
            (N, 3, H, W), or what `input` describes, approximately in `input.range`, not clamped, on
            the encoder's device.

        Raises:
            ValueError: the shape isn't accepted.
            EncoderError: the encoder can't decode or can't be loaded.
        """
        decoder = self._open_decoder()
        if not isinstance(decoder, Decodes):
            raise EncoderError(f"the encoder {self.name} can't decode")
        given = latents.latents if isinstance(latents, EncodedLatents) else latents
        raw, is_single = find_raw_latents(given, self.layout, self.normalization, False)
        decoded = decoder.decode(raw.detach().to(self.device).contiguous())
        decoded = decoded.clone() if decoded.is_inference() else decoded
        return decoded[0] if is_single else decoded

    def normalize(self, raw: Tensor) -> Tensor:
        """Normalize raw latents, (..., C, h, w), for a trainer.

        Raises:
            ValueError: the encoder gives indices, which aren't normalized, or the normalization
                doesn't fit the shape.
        """
        self._refuse_indices()
        return self._encoder.normalization.apply(raw, self.layout.axes)

    def denormalize(self, latents: Tensor) -> Tensor:
        """Return raw latents, (..., C, h, w), of normalized ones.

        Raises:
            ValueError: as for `normalize`.
        """
        self._refuse_indices()
        return self._encoder.normalization.invert(latents, self.layout.axes)

    # ------------------------------------------------------------ inside

    def _encode_tensors(self, inputs: Tensor | Mapping[str, Tensor]) -> EncodedLatents:
        """Encode a batch, a single input, or a mapping of batches."""
        if isinstance(inputs, Mapping):
            return self._run(inputs)
        is_single = inputs.ndim == len(self.input.axes)
        batch = inputs[None] if is_single else inputs
        self._check(batch, tuple(inputs.shape))
        encoded = self._run(batch.detach().float())
        return take_first(encoded) if is_single else encoded

    def _run(self, batch: Any) -> EncodedLatents:
        with torch.no_grad():
            latents = encode_batch(self._encoder, _move_to(batch, self.device))
        return as_encoded(latents, self.layout, self.normalization)

    def _modality(self, size: Any) -> Modality:
        """Return the modality that prepares files to a size, built once."""
        key = size if size is None or isinstance(size, int) else tuple(size)
        if key not in self._modalities:
            self._modalities[key] = self._open_modality(size)
        return self._modalities[key]

    def _check(self, batch: Tensor, shape: tuple[int, ...]) -> None:
        """Refuse a tensor that the encoder would misinterpret."""
        axes, channels = self.input.axes, self.input.channels
        wanted = ", ".join([str(channels), *axes[1:]])
        low, high = self.input.range
        if batch.ndim != len(axes) + 1 or batch.shape[1] != channels or not len(batch):
            raise ValueError(
                f"{self.name} takes ({wanted}) or a batch (N, {wanted}), got shape {shape}"
            )
        for axis, size in zip(axes[1:], batch.shape[2:], strict=True):
            rule = self.input.sizes.get(axis)
            if rule is not None and not rule.allows(size):
                near = " and ".join(map(str, rule.neighbors(size)))
                raise ValueError(
                    f"{axis} {size} is not a size that {self.name} accepts: {rule}; nearest: {near}"
                )
        if not batch.is_floating_point():
            raise ValueError(
                f"{self.name} takes floats in [{low:g}, {high:g}], got"
                f" {str(batch.dtype).removeprefix('torch.')}; for 8-bit images use x / 255 *"
                f" {high - low:g} + {low:g}"
            )
        if self.modality == "image":
            found = [float(value) for value in batch.detach().float().aminmax()]
            slack = MAX_OVERSHOOT * (high - low)
            if found[0] < low - slack or found[1] > high + slack:
                raise ValueError(
                    f"{self.name} takes values in [{low:g}, {high:g}], got {found[0]:g} to"
                    f" {found[1]:g}"
                )

    def _refuse_indices(self) -> None:
        if self.layout.kind == "quantised":
            raise ValueError(f"{self.name} gives indices into a codebook, which are not normalized")


def _move_to(batch: Any, device: str) -> Any:
    """Return a batch, or a mapping of batches, on the device."""
    if isinstance(batch, Mapping):
        return {name: part.to(device) for name, part in batch.items()}
    return batch.to(device)


def _describe(normalization: Normalization) -> str:
    """Return a normalization as a short text."""

    def number(value: Any) -> str:
        return f"{value:g}" if isinstance(value, int | float) else "per channel"

    folded = f", folded by {dict(normalization.fold)}" if normalization.fold else ""
    return f"shift {number(normalization.shift)}, scale {number(normalization.scale)}{folded}"

"""What storing latents as int8 costs in what they decode to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentkit.contracts import Decodes, Encoder
from latentkit.encoding.batch_tensors import encode_batch
from latentkit.store.int8 import dequantize, quantize

MOST_DB = 100.0
"""Beyond it two decodings are the same for every purpose, and equal ones would be infinite."""


def measure_psnr(
    encoder: Encoder, prepared: Sequence[Tensor], decoder: Encoder | None = None
) -> float | None:
    """Return the PSNR in dB between decoded latents and the same stored as int8, rounded.

    20 log10(range) - 10 log10(mean squared difference), both decodings clamped to the encoder's
    input range, whose width is the range; at most 100 dB for one view; the mean over the views.
    Each view is encoded and decoded alone, and the last digits are rounded away, because the last
    bits of a decoding differ by batch, device and thread count. None where there is nothing to
    compare: no views, an encoder that can't decode or gives indices, or values that aren't finite.

    Args:
        prepared: views without the batch axis, (C, H, W) float32 in the encoder's range, on its
            device.
        decoder: the same encoder in float32, to decode with; None decodes with `encoder`.
    """
    decoder = decoder or encoder
    if not isinstance(decoder, Decodes) or encoder.layout.kind == "quantised" or not prepared:
        return None
    low, high = encoder.input.range
    levels = []
    for view in prepared:
        with torch.inference_mode():
            encoded = encode_batch(encoder, view[None])
            latents = encoded["mean" if "mean" in encoded else "latent"].float()
            if not latents.isfinite().all():
                return None
            rounded = torch.from_numpy(dequantize(*quantize(latents.cpu().numpy()))).to(
                latents.device
            )
            exact, stored = (
                decoder.decode(values).cpu().double().clamp(low, high)
                for values in (latents, rounded)
            )
            squared = float((exact - stored).square().mean())
        levels.append(
            min(10 * math.log10((high - low) ** 2 / squared), MOST_DB) if squared else MOST_DB
        )
    psnr = sum(levels) / len(levels)
    return round(psnr, 2) if math.isfinite(psnr) else None

"""Measures the quality lost by storing latents as int8."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentkit.contracts import Decodes, Encoder
from latentkit.encoding.batch_tensors import encode_batch
from latentkit.store.int8 import dequantize, quantize

MAX_DB = 100.0
"""Limit of the result, because equal decodings would give infinity."""


def measure_psnr(
    encoder: Encoder, prepared: Sequence[Tensor], decoder: Encoder | None = None
) -> float | None:
    """Return the PSNR in dB between decodings of latents before and after being stored as int8,
    rounded to 2 decimals.

    It is 20 log10(range) - 10 log10(mean squared difference), where range is the width of the
    encoder's input range, to which both decodings are clamped. Each view's result is at most 100
    dB; the result is the mean over views. Each view is encoded and decoded alone, and the result is
    rounded, because the last bits of a decoding depend on batch, device and thread count. Return
    None if nothing can be compared: no views, an encoder that can't decode or returns indices, or
    values that aren't finite.

    Args:
        prepared: views without the batch axis, (C, H, W) float32 in the encoder's range, on its
            device.
        decoder: the same encoder in float32, for decoding; None uses `encoder`.
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
            min(10 * math.log10((high - low) ** 2 / squared), MAX_DB) if squared else MAX_DB
        )
    psnr = sum(levels) / len(levels)
    return round(psnr, 2) if math.isfinite(psnr) else None

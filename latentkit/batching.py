"""Tensors on their way through the encoder: rows to a batch, latents held to their layout, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.buffers import BufferPool, as_tensor
from latentkit.contracts import LatentLayout
from latentkit.errors import EncoderError
from latentkit.layouts import LOGVAR_RANGE


def stack(rows: Sequence[Tensor | Mapping[str, Tensor]], pool: BufferPool) -> Any:
    """Rows to one batch on the CPU; a mapping of tensors becomes a mapping of batches.

    The batch lies in memory of the pool: faulting in fresh pages costs several times the copy.
    """
    first = rows[0]
    if isinstance(first, Mapping):
        return {name: stack([row[name] for row in rows if isinstance(row, Mapping)], pool) for name in first}
    batch = pool.get((len(rows), *first.shape), first.numpy().dtype)
    # numpy's copy, not torch's: that one would wake a team of threads on cores which are busy decoding.
    np.stack([row.numpy() for row in rows if isinstance(row, Tensor)], out=batch)
    return as_tensor(batch)


def copy_stream(device: str) -> Any:
    """A stream for copies to a GPU; None for another device."""
    return torch.cuda.Stream(device) if device.startswith("cuda") else None  # type: ignore[no-untyped-call]


def to_device(batch: Any, device: str, stream: Any) -> Any:
    """The batch on the device; to a GPU it is copied on `stream`, while the batch before is encoded, and must be kept until it was used."""
    if isinstance(batch, Mapping):
        return {name: to_device(part, device, stream) for name, part in batch.items()}
    if stream is None:
        return batch.to(device)
    with torch.cuda.stream(stream):
        copy = batch.to(device, non_blocking=True)
    current = torch.cuda.current_stream()
    current.wait_stream(stream)
    copy.record_stream(current)
    return copy


def select_rows(batch: Any, chosen: Tensor) -> Any:
    """The rows of a batch, or of a mapping of batches, for which `chosen`, (N,), is true."""
    return {name: part[chosen] for name, part in batch.items()} if isinstance(batch, Mapping) else batch[chosen]


def check_latents(latents: Mapping[str, Tensor], layout: LatentLayout, batch: Any) -> None:
    """Hold an encoder to its own layout.

    Raises:
        EncoderError: names, number of axes, channels or sizes are not those it declares.
    """
    names = {"gaussian": {"mean", "logvar"}, "deterministic": {"latent"}, "quantised": {"indices"}}[layout.kind]
    if set(latents) != names:
        raise EncoderError(f"the encoder gave {sorted(latents)}; a {layout.kind} layout needs {sorted(names)}")
    rows = batch if isinstance(batch, Tensor) else next(iter(batch.values()))
    for name, tensor in latents.items():
        got = tuple(tensor.shape)
        has_channels = layout.kind != "quantised"
        if len(got) != len(layout.axes) + 1 or got[0] != len(rows) or (has_channels and got[1] != layout.channels):
            raise EncoderError(
                f"the encoder's {name!r} has shape {got}; its layout says {len(rows)} rows, axes {layout.axes}, {layout.channels} channels"
            )
        if layout.ragged_axis is None and isinstance(batch, Tensor) and rows.ndim == tensor.ndim:
            _check_sizes(name, tensor, layout, rows)


def _check_sizes(name: str, tensor: Tensor, layout: LatentLayout, rows: Tensor) -> None:
    factors = (layout.downscale,) * (tensor.ndim - 2) if isinstance(layout.downscale, int) else layout.downscale
    expected = tuple(-(-size // factor) for size, factor in zip(rows.shape[2:], factors, strict=True))
    if tuple(tensor.shape[2:]) != expected:
        got, given = tuple(tensor.shape[2:]), tuple(rows.shape[2:])
        raise EncoderError(f"the encoder's {name!r} has sizes {got} for an input of {given}; its layout says {expected}")


def stored_tensors(latents: Mapping[str, Tensor], store: str, dtype: torch.dtype, draws: Sequence[int] | None) -> dict[str, Tensor]:
    """What is written of a batch, by name, in the stored dtype: "moments" (mean then logvar), "latent" or "indices".

    Args:
        latents: as the encoder gave them.
        store: "moments", "mean" or "sample".
        dtype: of the stored latents; indices keep theirs.
        draws: seed of each row's draw, with "sample".
    """
    if "indices" in latents:
        return {"indices": latents["indices"]}
    if "latent" in latents:
        return {"latent": latents["latent"].to(dtype)}
    mean, logvar = latents["mean"], latents["logvar"]
    if store == "moments":
        channels = mean.shape[1]
        moments = mean.new_empty((len(mean), 2 * channels, *mean.shape[2:]), dtype=dtype)
        moments[:, :channels] = mean
        moments[:, channels:] = logvar
        moments[:, channels:].clamp_(*LOGVAR_RANGE)
        return {"moments": moments}
    if draws is not None:
        noise = torch.stack([torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in draws])
        mean = mean.float() + (0.5 * logvar.float().clamp(*LOGVAR_RANGE)).exp() * noise.to(mean.device)
    return {"latent": mean.to(dtype)}


def to_host(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """The tensors on the CPU, and what to call before they are read: copies from a CUDA device are still under way."""
    if all(tensor.device.type != "cuda" for tensor in tensors.values()):
        return {name: tensor.cpu() for name, tensor in tensors.items()}, lambda: None
    host = {name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        host[name].copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return host, event.synchronize

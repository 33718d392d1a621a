"""Tensors around the encoder: rows to a batch, latents checked against their layout, and the
tensors that are stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import Encoder, InputSpec, LatentLayout
from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.errors import EncoderError
from latentkit.reading.posterior import LatentMaker
from latentkit.runtime.masks import MASK, mask_of, masked_axes, pool_mask, without_mask
from latentkit.runtime.sample_faults import name_of
from latentkit.store.ragged import per_position_layout


def select_rows(batch: Any, chosen: Tensor) -> Any:
    """Return the rows of a batch, or of a mapping of batches, for which `chosen`, (N,), is true."""
    return (
        {name: part[chosen] for name, part in batch.items()}
        if isinstance(batch, Mapping)
        else batch[chosen]
    )


def num_rows_of(batch: Any) -> int:
    """Return the number of rows of a batch, or of a mapping of batches."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


# ---------------------------------------------------------------- through the encoder


def encode_batch(encoder: Encoder, batch: Any) -> dict[str, Tensor]:
    """Return latents of a batch, checked against the encoder's layout, with "mask", (N, sizes of
    its axes) bool, if rows have one.

    The mask is the encoder's own, or that of the batch reduced to the size of the latents. With a
    ragged axis there always is one.

    Raises:
        EncoderError: the latents aren't what the encoder declares, or it takes one tensor but rows
            have several.
    """
    return check_and_mask(encoder, encoder.encode(input_of(encoder.input, batch)), batch)


def check_and_mask(encoder: Encoder, given_latents: Any, batch: Any) -> dict[str, Tensor]:
    """Check what the encoder returned for `input_of` a batch, and add the mask, as for
    `encode_batch`.

    Raises:
        EncoderError: the result isn't what the encoder declares.
    """
    if not isinstance(given_latents, Mapping):
        expected = "expected a mapping such as {'mean': ..., 'logvar': ...} or {'latent': ...}"
        raise EncoderError(
            f"{name_of(encoder)}.encode: {expected}, got {type(given_latents).__name__}"
        )
    latents = dict(given_latents)
    mask = latents.pop(MASK, None)
    check_latents(latents, encoder.layout, batch, encoder.input.axes)
    given = mask_of(batch)
    if (
        mask is None and given is not None and masked_axes(encoder.layout, given.ndim - 1)
    ):  # one vector for a whole text has no positions
        mask = _latent_mask(given, encoder)
    values = next(iter(latents.values()))
    if encoder.layout.ragged_axis and mask is None:
        mask = torch.ones(
            len(values),
            values.shape[axis_of(encoder.layout, encoder.layout.ragged_axis)],
            dtype=torch.bool,
        )
    return latents if mask is None else latents | {MASK: _check_mask(mask, values, encoder.layout)}


def _latent_mask(mask: Tensor, encoder: Encoder) -> Tensor:
    """Return the batch's mask at the size of the latents."""
    axes, downscale = masked_axes(encoder.layout, mask.ndim - 1), downscale_of(encoder.layout)
    rules = [encoder.input.sizes.get(axis) for axis in axes]
    causal = [
        rule is not None and rule.offset % downscale[axis] == 1
        for rule, axis in zip(rules, axes, strict=True)
    ]
    return pool_mask(mask, [downscale[axis] for axis in axes], causal)


def input_of(spec: InputSpec, batch: Any) -> Any:
    """Return what an encoder takes from a batch.

    Raises:
        EncoderError: the encoder takes one tensor but rows have several, or it takes a mask that
            they lack.
    """
    if spec.takes_mask:
        if isinstance(batch, Mapping) and MASK in batch:
            return batch
        raise EncoderError(
            "the encoder needs a mask (its input has takes_mask), but the modality gave none; use a"
            " modality that gives masks, or an encoder without takes_mask"
        )
    values = without_mask(batch)
    if values is None:
        raise EncoderError(
            f"the encoder takes one tensor, but the modality returned rows with {sorted(batch)}."
            " With takes_mask it gets all of them"
        )
    return values


def _check_mask(mask: Tensor, values: Tensor, layout: LatentLayout) -> Tensor:
    """Return the mask as bool, after checking it against the latents."""
    axes = layout.ragged_axis or masked_axes(layout, mask.ndim - 1)
    expected = (len(values), *(values.shape[axis_of(layout, axis)] for axis in axes))
    if tuple(mask.shape) != expected:
        raise EncoderError(
            f"the mask at the latents' size has shape {tuple(mask.shape)} for latents of"
            f" {tuple(values.shape)}, axes {layout.axes}; expected {expected}. Fix"
            " layout.downscale, or let encode return its own 'mask'"
        )
    return mask.bool()


def check_layout(encoder: Encoder) -> None:
    """Check that an encoder's layout is consistent.

    Raises:
        EncoderError: axes, downscale, ragged axis and normalization don't fit together.
    """
    layout, problem = encoder.layout, ""
    downscale_of(layout)
    if layout.kind != "quantised" and not layout.axes.startswith("C"):
        problem = f"axes {layout.axes!r}; channels come first, as in 'CHW'"
    elif layout.ragged_axis is not None and layout.ragged_axis not in layout.axes.replace("C", ""):
        problem = (
            f"ragged_axis {layout.ragged_axis!r}, which is none of its axes {layout.axes!r} but C"
        )
    elif layout.kind != "quantised":
        try:
            single, normalization = per_position_layout(layout, encoder.normalization)
            LatentMaker(normalization, single)
        except ValueError as error:
            problem = f"a normalization that doesn't fit it: {error}"
    if problem:
        raise EncoderError(f"the encoder's layout has {problem}")


def axis_of(layout: LatentLayout, letter: str) -> int:
    """Return the index of a latent axis in a batch of latents."""
    return layout.axes.index(letter) + 1


def downscale_of(layout: LatentLayout) -> dict[str, int | float]:
    """Return input size over latent size, for each latent axis except C."""
    rest = layout.axes.replace("C", "", 1)
    factors = (
        layout.downscale if isinstance(layout.downscale, tuple) else (layout.downscale,) * len(rest)
    )
    if len(factors) != len(rest):
        raise EncoderError(
            f"the encoder's layout has {len(factors)} numbers in downscale; expected one for each"
            f" of {', '.join(rest)}"
        )
    return dict(zip(rest, factors, strict=True))


def check_latents(
    latents: Mapping[str, Tensor], layout: LatentLayout, batch: Any, input_axes: str
) -> None:
    """Check that latents are what the encoder's layout declares.

    Args:
        input_axes: a letter for each axis of one input row.

    Raises:
        EncoderError: names, number of axes, channels or sizes differ from the layout.
    """
    names = {"gaussian": {"mean", "logvar"}, "deterministic": {"latent"}, "quantised": {"indices"}}[
        layout.kind
    ]
    if set(latents) != names:
        raise EncoderError(
            f"the encoder returned {sorted(latents)}; a {layout.kind} layout needs {sorted(names)}"
        )
    num_rows, values = num_rows_of(batch), without_mask(batch)
    for name, tensor in latents.items():
        got = tuple(tensor.shape)
        has_channels = layout.kind != "quantised"
        if (
            len(got) != len(layout.axes) + 1
            or got[0] != num_rows
            or (has_channels and got[1] != layout.channels)
        ):
            raise EncoderError(
                f"the encoder's {name!r} has shape {got}; its layout says {num_rows} rows, axes"
                f" {layout.axes}, {layout.channels} channels"
            )
        if values is not None:
            _check_sizes(name, tensor, layout, values, input_axes)


def _check_sizes(
    name: str, tensor: Tensor, layout: LatentLayout, values: Tensor, input_axes: str
) -> None:
    """Check each axis that input and latents share, except the ragged one: latent size is input
    size over the downscale factor.
    """
    letters = (
        input_axes
        if len(input_axes) == values.ndim - 1
        else layout.axes
        if values.ndim == tensor.ndim
        else ""
    )
    given = dict(zip(letters, values.shape[1:], strict=False))
    got = dict(zip(layout.axes, tensor.shape[1:], strict=True))
    axes = [axis for axis in downscale_of(layout) if axis in given and axis != layout.ragged_axis]
    expected = {axis: -(-given[axis] // downscale_of(layout)[axis]) for axis in axes}
    if any(got[axis] != size for axis, size in expected.items()):
        sizes = {axis: got[axis] for axis in axes}, {axis: given[axis] for axis in axes}, expected
        text = [", ".join(f"{axis} {size}" for axis, size in part.items()) for part in sizes]
        raise EncoderError(
            f"the encoder's {name!r} has sizes {text[0]} for an input of {text[1]}; its layout says"
            f" {text[2]}"
        )


def check_readable(encoder: Encoder, latents: Mapping[str, Tensor]) -> None:
    """Check that the sizes of latents fit the normalization that they will be read with.

    Args:
        latents: result of `encode_batch`.

    Raises:
        EncoderError: the latents could be stored but never read.
    """
    layout = encoder.layout
    if layout.kind == "quantised":
        return
    shape = next(iter(latents.values())).shape[1:]
    sizes = [
        size for axis, size in zip(layout.axes, shape, strict=True) if axis != layout.ragged_axis
    ]
    try:
        single, normalization = per_position_layout(layout, encoder.normalization)
        normalization.apply(torch.zeros(1, *sizes), single.axes)
    except (ValueError, RuntimeError) as error:
        raise EncoderError(
            f"latents of shape {tuple(shape)}, axes {layout.axes}, could be stored but not read "
            f"back: {error}. Let the modality prepare other sizes, or encode with another model"
        ) from error


# ---------------------------------------------------------------- what is stored


def stored_tensors(
    latents: Mapping[str, Tensor], store: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return what is stored of a batch, by name, in the stored dtype: "moments" (mean then logvar),
    "latent" or "indices", and "mask", uint8.

    Args:
        latents: result of `encode_batch`.
        store: "moments", "mean" or "sample".
        dtype: dtype of the stored latents; indices keep theirs.
    """
    mask = {MASK: latents[MASK].to(torch.uint8)} if MASK in latents else {}
    if "indices" in latents:
        return {"indices": latents["indices"], **mask}
    if "latent" in latents:
        return {"latent": latents["latent"].to(dtype), **mask}
    mean, logvar = latents["mean"], latents["logvar"]
    if store == "moments":
        channels = mean.shape[1]
        moments = mean.new_empty((len(mean), 2 * channels, *mean.shape[2:]), dtype=dtype)
        moments[:, :channels] = mean
        moments[:, channels:] = logvar
        moments[:, channels:].clamp_(*LOGVAR_RANGE)
        return {"moments": moments, **mask}
    return {"latent": mean.to(dtype), **mask}

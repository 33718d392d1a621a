"""Batches to test encoders with (a tensor, or tensors by name with "mask"), and the expected shape
of their latents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from latentkit.contracts import Encoder, InputSpec

Batch = Tensor | Mapping[str, Tensor]

SMALLEST_SIZE = 16


def copy_of(batch: Batch) -> Batch:
    """Return a copy of the batch."""
    return (
        batch.clone()
        if isinstance(batch, Tensor)
        else {name: tensor.clone() for name, tensor in batch.items()}
    )


def row_of(batch: Batch, number: int) -> Batch:
    """Return one row as a batch."""
    chosen = slice(number, number + 1)
    return (
        batch[chosen]
        if isinstance(batch, Tensor)
        else {name: tensor[chosen] for name, tensor in batch.items()}
    )


def values_of(batch: Batch) -> Tensor:
    """Return the batch without its mask; if it has several tensors, the first one."""
    return (
        batch
        if isinstance(batch, Tensor)
        else next(tensor for name, tensor in batch.items() if name != "mask")
    )


def are_same(one: Batch, other: Batch) -> bool:
    """Return whether two batches agree bit for bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def mask_along(size: int, num_rows: int) -> Tensor:
    """Return a mask (N, size) float32, 1 where a position counts: all positions of the first row,
    and fewer in each further row.
    """
    lengths = torch.tensor(
        [max(1, size - row * (size // (2 * num_rows) + 1)) for row in range(num_rows)]
    )
    return (torch.arange(size) < lengths[:, None]).float()


def other_padding(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch with other values where its mask, (N, sizes of the first axes after the
    channels), is 0.
    """
    mask, changed = batch["mask"].bool(), {"mask": batch["mask"]}
    for name, tensor in batch.items():
        if name != "mask":
            channels = tensor.ndim > mask.ndim
            moved = tensor.movedim(1, -1).clone() if channels else tensor.clone()
            moved[~mask] = moved[mask].flatten()[0]
            changed[name] = moved.movedim(-1, 1) if channels else moved
    return changed


# ---------------------------------------------------------------- sizes


def axes_of(encoder: Encoder) -> list[str]:
    """Return the letters of the input's axes except C."""
    return [axis for axis in encoder.input.axes if axis != "C"]


def allowed_sizes(spec: InputSpec, axis: str) -> list[int]:
    """Return the two smallest sizes of an axis, from `SMALLEST_SIZE` on, that its rule allows;
    twice the same size if there is only one.
    """
    rule = spec.sizes.get(axis)
    if rule is None:
        return [2 * SMALLEST_SIZE, 3 * SMALLEST_SIZE]
    first = max(rule.minimum, min(SMALLEST_SIZE, rule.maximum or SMALLEST_SIZE))
    found = [size for size in range(first, first + 2 * rule.multiple) if rule.allows(size)]
    assert found, f"no size of {axis} is allowed by {rule}: override sizes()"
    return [found[0], found[-1]]


def forbidden_size(spec: InputSpec, axis: str, good: int) -> int | None:
    """Return a size a little above an allowed one that the rule forbids; None if there is none."""
    rule = spec.sizes.get(axis)
    return next(
        (
            size
            for size in range(good + 1, good + 1 + (rule.multiple if rule else 0))
            if rule and not rule.allows(size)
        ),
        None,
    )


def expected_shape(
    encoder: Encoder, num_rows: int, sizes: tuple[int, ...], got: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of a batch of latents by the layout alone. The sizes of the ragged axis, and
    of axes that the input doesn't have, are taken from `got`.
    """
    layout, given = encoder.layout, dict(zip(axes_of(encoder), sizes, strict=True))
    rest = layout.axes.replace("C", "", 1)
    factors = (
        layout.downscale if isinstance(layout.downscale, tuple) else (layout.downscale,) * len(rest)
    )
    expected = [num_rows]
    for place, axis in enumerate(layout.axes, start=1):
        if axis == "C":
            expected.append(layout.channels)
        elif axis in given and axis != layout.ragged_axis:
            expected.append(math.ceil(given[axis] / factors[rest.index(axis)]))
        elif place < len(got):
            expected.append(got[place])
    return tuple(expected)

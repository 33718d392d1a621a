"""Batches that encoders are tried with: a tensor, or tensors by name with "mask"; and what their
latents have to look like.
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
    """The batch in memory of its own."""
    return (
        batch.clone()
        if isinstance(batch, Tensor)
        else {name: tensor.clone() for name, tensor in batch.items()}
    )


def row_of(batch: Batch, number: int) -> Batch:
    """One row, as a batch."""
    chosen = slice(number, number + 1)
    return (
        batch[chosen]
        if isinstance(batch, Tensor)
        else {name: tensor[chosen] for name, tensor in batch.items()}
    )


def values_of(batch: Batch) -> Tensor:
    """The batch without its mask; of several tensors, the first."""
    return (
        batch
        if isinstance(batch, Tensor)
        else next(tensor for name, tensor in batch.items() if name != "mask")
    )


def are_same(one: Batch, other: Batch) -> bool:
    """Whether two batches agree bit for bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return one.keys() == other.keys() and all(
        torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def mask_along(size: int, num_rows: int) -> Tensor:
    """(N, size) float32: 1 where a position counts, which are all of the first row, and fewer of
    each that follows.
    """
    lengths = torch.tensor(
        [max(1, size - row * (size // (2 * num_rows) + 1)) for row in range(num_rows)]
    )
    return (torch.arange(size) < lengths[:, None]).float()


def other_padding(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch with other values where its mask, (N, sizes of the first axes after the channels),
    is 0.
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
    """Letters of the input's axes but C."""
    return [axis for axis in encoder.input.axes if axis != "C"]


def allowed_sizes(spec: InputSpec, axis: str) -> list[int]:
    """The two smallest sizes of an axis from `SMALLEST_SIZE` on that its rule allows (one, where
    there is only one).
    """
    rule = spec.sizes.get(axis)
    if rule is None:
        return [2 * SMALLEST_SIZE, 3 * SMALLEST_SIZE]
    first = max(rule.minimum, min(SMALLEST_SIZE, rule.maximum or SMALLEST_SIZE))
    found = [size for size in range(first, first + 2 * rule.multiple) if rule.allows(size)]
    assert found, f"no size of {axis} is allowed by {rule}: override sizes()"
    return [found[0], found[-1]]


def forbidden_size(spec: InputSpec, axis: str, good: int) -> int | None:
    """A size a little above a good one that the rule forbids; None where it forbids none there."""
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
    """Shape of a batch of latents, by the layout alone; as it is along axes that the input hasn't,
    and the ragged one.
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

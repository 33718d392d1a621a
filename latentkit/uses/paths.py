"""Paths between latents."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from latentkit.uses.nearest_rows import find_nearest
from latentkit.uses.raw_rows import RawRows
from latentkit.uses.recipes import PathMethod

SMALLEST_ANGLE = 1e-4
"""Below it, in radians, the sphere is as good as flat."""


def make_path(
    ends: Tensor, steps: int, method: PathMethod, rows: RawRows, std: Tensor
) -> list[Tensor]:
    """Return the points between each end and the next, both included: raw latents (steps, C, ...)
    for each of the pieces.

    Args:
        ends: (K, C, ...) raw.
        method: "linear"; "spherical": along the great circle of normalized latents, whose length
            changes linearly (K. Shoemake 1985); "neighbors": linear from one item of the dataset to
            the next, by the items that are nearest to the points of the straight line.
        rows: the dataset, for "neighbors".
        std: (C,) of each channel, the unit of its distances.
    """
    weights = torch.linspace(0, 1, steps)
    pieces = []
    for start, end in itertools.pairwise(ends):
        if method == "spherical":
            pieces.append(_along_circle(start, end, weights, rows))
        elif method == "linear":
            pieces.append(_along_line(start, end, weights))
        else:
            pieces.append(_through_neighbors(start, end, weights, rows, std))
    return pieces


def _along_line(start: Tensor, end: Tensor, weights: Tensor) -> Tensor:
    wide = weights.reshape(-1, *[1] * start.ndim)
    return start * (1 - wide) + end * wide


def _along_circle(start: Tensor, end: Tensor, weights: Tensor, rows: RawRows) -> Tensor:
    normalization, axes = rows.dataset.normalization, rows.dataset.layout.axes
    one, other = (normalization.apply(end[None], axes)[0] for end in (start, end))
    lengths = one.norm().clamp_min(1e-12), other.norm().clamp_min(1e-12)
    units = one / lengths[0], other / lengths[1]
    angle = torch.arccos((units[0] * units[1]).sum().clamp(-1, 1))
    wide = weights.reshape(-1, *[1] * one.ndim)
    if float(angle) < SMALLEST_ANGLE:
        return _along_line(start, end, weights)
    directions = torch.sin((1 - wide) * angle) * units[0] + torch.sin(wide * angle) * units[1]
    points = directions / torch.sin(angle) * (lengths[0] * (1 - wide) + lengths[1] * wide)
    return normalization.invert(points, axes)


def _through_neighbors(
    start: Tensor, end: Tensor, weights: Tensor, rows: RawRows, std: Tensor
) -> Tensor:
    """Return points spread evenly by length over a path through items."""
    line = _along_line(start, end, weights)
    keys = find_nearest(line[1:-1], rows, std, None).keys if len(line) > 2 else []
    means = replace(rows, draws=False)
    found = means.find(list(dict.fromkeys(keys)))
    stops = [start, *(means.moments(found)[0] if len(found) else []), end]
    lengths = torch.stack([(b - a).norm() for a, b in itertools.pairwise(stops)])
    reached = torch.cat([torch.zeros(1), lengths.cumsum(0)])
    points = []
    for distance in weights * reached[-1]:
        place = min(int((reached[1:] < distance).sum()), len(lengths) - 1)
        share = (distance - reached[place]) / lengths[place].clamp_min(1e-12)
        points.append(torch.lerp(stops[place], stops[place + 1], share))
    return torch.stack(points)

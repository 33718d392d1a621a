"""Finds the items of a latent dataset that are nearest to latents."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latentkit.uses.raw_rows import RawRows

NUM_REFERENCE_ROWS = 64


@dataclass(frozen=True)
class Nearest:
    """The nearest item of each latent.

    Args:
        keys: of the items.
        distances: (N,) float64, root mean square of the differences, in standard deviations of
            their channel.
    """

    keys: list[str]
    distances: Tensor


def find_nearest(latents: Tensor, rows: RawRows, std: Tensor, not_own: Tensor | None) -> Nearest:
    """Return the row whose latent (its posterior's mean) is nearest to each latent.

    Args:
        latents: (N, C, ...) raw.
        std: (C,) standard deviation of each channel.
        not_own: (N,) position in the dataset of the row that each latent is of; all rows of its
            key are left out. None: no row is left out.
    """
    scale = std.float().reshape(-1, *[1] * (latents.ndim - 2)).clamp_min(1e-12)
    queries = (latents / scale).flatten(1)
    keys = rows.dataset.keys
    own = None if not_own is None else [keys[item] for item in not_own.tolist()]
    best = torch.full((len(queries),), math.inf)
    places = torch.zeros(len(queries), dtype=torch.long)
    for items, means in replace(rows, draws=False).numbered_batches():
        distances = torch.cdist(queries, (means / scale).flatten(1))
        if own is not None:
            named = [keys[item] for item in items.tolist()]
            distances[torch.tensor([[one == key for one in named] for key in own])] = math.inf
        found, where = distances.min(1)
        nearer = found < best
        best[nearer] = found[nearer]
        places[nearer] = torch.from_numpy(items)[where[nearer]]
    size = queries.shape[1]
    return Nearest([keys[item] for item in places.tolist()], best.double() / math.sqrt(size))


def reference_distances(rows: RawRows, std: Tensor) -> Tensor:
    """Return the distances, (N,) float64, of some rows to the nearest row of another key; see
    `Nearest`.
    """
    some = rows.spread(NUM_REFERENCE_ROWS)
    means = replace(some, draws=False).some(NUM_REFERENCE_ROWS)
    return find_nearest(means, rows, std, torch.from_numpy(some.items)).distances

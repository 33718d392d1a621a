"""How unusual the latents of a dataset are, without decoding anything."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import Moments
from latentkit.losses.kl import kl_nats
from latentkit.uses.calibration import Scores
from latentkit.uses.nearest_rows import find_nearest
from latentkit.uses.raw_rows import RawRows
from latentkit.uses.samplers import LowRankGaussian, channel_moments


@dataclass(frozen=True)
class NormalLatents:
    """The distribution of latents that count as usual.

    Args:
        rows: their rows.
        gaussian: fitted to their means.
        std: (C,) of each channel, the unit of distances.
    """

    rows: RawRows
    gaussian: LowRankGaussian
    std: Tensor

    @classmethod
    def fit(cls, rows: RawRows, rank: int) -> NormalLatents:
        """Return the distribution of rows, by the means of their posteriors."""
        means = replace(rows, draws=False)
        gaussian = LowRankGaussian.fit(means, rank)
        mean, squares = channel_moments(means.batches())
        variance = squares - mean.square()
        return cls(means, gaussian, variance.clamp_min(0).sqrt())


def score_latents(rows: RawRows, normal: NormalLatents, are_own: bool) -> dict[str, Scores]:
    """Return scores of rows, in their order.

    - `kl`: KL of the posterior to the prior N(0, I), nats per item; missing without posteriors.
    - `mahalanobis`: distance of the posterior's mean from the usual latents' mean, by their
      covariance (low rank and the same variance in all other directions), a root mean square in
      standard deviations.
    - `nearest`: distance of the mean to the nearest usual one, see `find_nearest`.

    Args:
        are_own: whether the rows may be among the usual ones; rows of the same key are then left
            out of the search.
    """
    found: dict[str, list[Tensor]] = {}
    means = replace(rows, draws=False)
    for items in means.item_batches():
        mean, logvar = means.moments(items)
        own = torch.from_numpy(items) if are_own else None
        scores = {
            "mahalanobis": normal.gaussian.distance(mean),
            "nearest": find_nearest(mean, normal.rows, normal.std, own).distances,
        }
        if logvar is not None:
            scores["kl"] = kl_nats(Moments(mean, logvar)).double()
        for name, values in scores.items():
            found.setdefault(name, []).append(values)
    return {name: np.asarray(torch.cat(values).numpy()) for name, values in found.items()}

"""A mixture of Gaussians as a sampler, for latents of few values. Needs scikit-learn."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from latentkit.errors import RecipeError
from latentkit.uses.raw_rows import RawRows

MOST_VALUES_PER_LATENT = 512
"""A component has a covariance of this many values squared."""
MOST_ROWS = 20_000
REGULARIZATION = 1e-6
EXTRA = "pip install 'latentkit-diffusion[mixture]'"


@dataclass(frozen=True)
class GaussianMixture:
    """Gaussians with a full covariance each.

    Args:
        model: scikit-learn's `GaussianMixture`, fitted.
    """

    name: ClassVar[str] = "mixture"
    shape: tuple[int, ...]
    model: Any

    @classmethod
    def fit(cls, rows: RawRows, num_components: int, seed: int) -> GaussianMixture:
        """Return the one that fits up to `MOST_ROWS` rows.

        Raises:
            RecipeError: scikit-learn isn't installed, a latent has too many values, or there are
                too few rows.
        """
        if reason := why_not(rows, num_components):
            raise RecipeError(f"sampler: mixture: {reason}")
        from sklearn.mixture import GaussianMixture as Model

        values = rows.some(MOST_ROWS).flatten(1).double().numpy()
        model = Model(num_components, reg_covar=REGULARIZATION, random_state=seed % 2**32)
        return cls(rows.shape, model.fit(values))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return (count, *shape) float32."""
        weights = torch.from_numpy(np.asarray(self.model.weights_))
        chosen = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn((count, math.prod(self.shape)), generator=generator).double()
        values = torch.empty_like(noise)
        for number in sorted(set(chosen.tolist())):
            factor = torch.linalg.cholesky(torch.from_numpy(self.model.covariances_[number]))
            of_it = chosen == number
            values[of_it] = torch.from_numpy(self.model.means_[number]) + noise[of_it] @ factor.T
        return values.float().reshape(count, *self.shape)

    def log_density(self, latents: Tensor) -> Tensor:
        """Return nats, (N,) float64."""
        return torch.from_numpy(self.model.score_samples(latents.flatten(1).double().numpy()))


def why_not(rows: RawRows, num_components: int) -> str:
    """Return why a mixture can't be fitted to rows; "" if it can."""
    size = math.prod(rows.shape)
    if size > MOST_VALUES_PER_LATENT:
        return (
            f"expected latents of at most {MOST_VALUES_PER_LATENT} values, got {size}; choose"
            " low-rank or spatial-gaussian"
        )
    if len(rows) < 2 * num_components:
        return (
            f"expected at least {2 * num_components} rows for {num_components} components, got"
            f" {len(rows)}; set components lower"
        )
    if importlib.util.find_spec("sklearn") is None:
        return f"needs scikit-learn: {EXTRA}"
    return ""

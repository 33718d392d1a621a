"""Measures how far a latent dataset is from the prior, and fits the sampler that suits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from latentkit.uses.mixture import GaussianMixture, why_not
from latentkit.uses.raw_rows import RawRows
from latentkit.uses.recipes import NewItemKeys, SampleRecipe
from latentkit.uses.samplers import (
    ChannelGaussian,
    LowRankGaussian,
    Sampler,
    SpatialGaussian,
    StandardNormal,
    mean_log_density,
)

Fit = Callable[[RawRows], Sampler]
Options = SampleRecipe | NewItemKeys

FULL_COVARIANCE_VALUES = 512
"""Values of a latent up to which all their covariances are measured."""


@dataclass(frozen=True)
class PriorGap:
    """How far the aggregate posterior q(z), the distribution of all latents of a dataset together,
    is from the prior N(0, I). Raw latent space.

    Args:
        kl_at_least: nats per value, KL(q(z) || N(0, I)) if q(z) were Gaussian; no distribution
            with the same means and covariances has less.
        kl_at_most: nats per value, the mean KL of a posterior to the prior, the rate of the
            encoder; None where no posterior is stored.
        mean, std: of a draw, per channel.
        num_values: values of a latent.
    """

    kl_at_least: float
    kl_at_most: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_values: int

    def __str__(self) -> str:
        upper = "" if self.kl_at_most is None else f" and at most {self.kl_at_most:.4g}"
        deviations = f"{min(self.std):.3g} to {max(self.std):.3g}"
        return (
            f"KL from all latents together to the prior N(0, I): at least {self.kl_at_least:.4g}"
            f"{upper} nats per value; means per channel {min(self.mean):.3g} to"
            f" {max(self.mean):.3g} (the prior has 0), standard deviations {deviations} (1)"
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "unit": "nats per value"}


def measure_gap(rows: RawRows) -> PriorGap:
    """Return the gap between the rows' latents and the prior, from the posteriors themselves: draws
    add no noise.
    """
    size, channels = math.prod(rows.shape), rows.shape[0]
    full = size <= FULL_COVARIANCE_VALUES
    total, count, rate, has_posterior = torch.zeros(size).double(), 0, 0.0, False
    second = torch.zeros((size, size) if full else size).double()
    for items in rows.item_batches():
        mean, logvar = rows.moments(items)
        values = mean.flatten(1).double()
        variance = torch.zeros_like(values) if logvar is None else logvar.flatten(1).double().exp()
        count, total = count + len(values), total + values.sum(0)
        spread = torch.diag(variance.sum(0)) if full else variance.sum(0)
        second += (values.T @ values if full else values.square().sum(0)) + spread
        if logvar is not None:
            has_posterior = True
            nats = values.square() + variance - 1 - logvar.flatten(1).double()
            rate += float(nats.sum()) / 2
    center, second = total / count, second / count
    variances = (torch.diagonal(second) if full else second) - center.square()
    of_channel, means = variances.reshape(channels, -1), center.reshape(channels, -1)
    mean_of = means.mean(1)
    std_of = (of_channel.mean(1) + (means - mean_of[:, None]).square().mean(1)).clamp_min(0).sqrt()
    covariance = second - torch.outer(center, center) if full else variances.clamp_min(0)
    return PriorGap(
        _kl_to_prior(center, covariance, count) / size,
        rate / (count * size) if has_posterior else None,
        tuple(mean_of.tolist()),
        tuple(std_of.tolist()),
        size,
    )


def _kl_to_prior(mean: Tensor, covariance: Tensor, count: int) -> float:
    """Return KL(N(mean, covariance) || N(0, I)) in nats.

    Args:
        covariance: (D, D), or (D,) without covariances, which is a lower limit of it too. A
            covariance of fewer rows than values is used without its covariances.
    """
    if covariance.ndim == 2 and count <= len(mean):
        covariance = torch.diagonal(covariance)
    spectrum = torch.linalg.eigvalsh(covariance) if covariance.ndim == 2 else covariance
    spectrum = spectrum.clamp_min(1e-12)
    return float((spectrum - 1 - spectrum.log()).sum() + mean.square().sum()) / 2


@dataclass(frozen=True)
class FittedSampler:
    """A sampler, and why it was chosen.

    Args:
        log_densities: mean log-density of held-out latents in nats per value, by sampler.
        left_out: why other samplers weren't tried, by name.
    """

    sampler: Sampler
    log_densities: Mapping[str, float]
    left_out: Mapping[str, str]
    is_chosen: bool

    def __str__(self) -> str:
        ordered = sorted(self.log_densities.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{name} {value:.4g}" for name, value in ordered)
        how = "the best of these" if self.is_chosen else "asked for"
        best = ordered[0][0]
        advice = "" if best == self.sampler.name else f"; {best} would fit better"
        left_out = "".join(f"; not tried: {name}: {why}" for name, why in self.left_out.items())
        return (
            f"sampler {self.sampler.name}, {how}{advice}. Log-density of held-out latents, in nats"
            f" per value: {listed}{left_out}"
        )


def fit_sampler(rows: RawRows, recipe: Options) -> FittedSampler:
    """Return the recipe's sampler, fitted to all rows; with auto the one of the highest
    log-density for a tenth of the rows that it isn't fitted to.

    Raises:
        LatentkitError: too few rows, or a sampler that can't be fitted to them.
    """
    fits, left_out = _list_fits(rows, recipe)
    to_fit, held_out = rows.split()
    measured = {name: mean_log_density(fit(to_fit), held_out) for name, fit in fits.items()}
    best = max(measured, key=lambda name: measured[name])
    name = best if recipe.sampler == "auto" else recipe.sampler
    sampler = fits[name](rows)
    return FittedSampler(sampler, measured, left_out, recipe.sampler == "auto")


def refit(sampler: Sampler, rows: RawRows, recipe: Options) -> Sampler:
    """Return a sampler of the same kind, fitted to other rows."""
    return _all_fits(recipe)[sampler.name](rows)


def _list_fits(rows: RawRows, recipe: Options) -> tuple[dict[str, Fit], dict[str, str]]:
    """Return what can be fitted to rows, by name, and why the rest can't; what the recipe names is
    among the former.
    """
    fits = _all_fits(recipe)
    reason = why_not(rows, recipe.components)
    if reason and recipe.sampler != "mixture":
        del fits["mixture"]
        return fits, {"mixture": reason}
    return fits, {}


def _all_fits(recipe: Options) -> dict[str, Fit]:
    return {
        "normal": lambda rows: StandardNormal(rows.shape),
        "channel-gaussian": ChannelGaussian.fit,
        "spatial-gaussian": SpatialGaussian.fit,
        "low-rank": lambda rows: LowRankGaussian.fit(rows, recipe.rank),
        "mixture": lambda rows: GaussianMixture.fit(rows, recipe.components, recipe.seed),
    }

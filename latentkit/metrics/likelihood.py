"""Metrics `kl`, `elbo` and `iwae`: rate, the evidence lower bound, and the importance-weighted
estimate of the likelihood.

Likelihoods are densities of continuous values in the model's range (or probabilities of bits), so
that nats depend on that range; sums are float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentkit.contracts import Figure, Measured, MetricBatch, MetricSetting, Moments
from latentkit.contracts.plugin_specs import Better
from latentkit.losses.kl import kl_nats
from latentkit.losses.likelihood import GAUSSIAN, LAPLACE, Family
from latentkit.metrics.metric import (
    ELBO_STREAM,
    IWAE_STREAM,
    Floats,
    concatenate,
    draw,
    mean,
    noise_for,
    show_range,
)
from latentkit.runtime.device import to_float64

FAMILIES: dict[str, Family] = {"gaussian": GAUSSIAN, "laplace": LAPLACE}
SMALLEST_PROBABILITY = 1e-7
BITS = "bits_per_dim"
DRAWS_AT_ONCE = 10
"""Importance samples of a whole batch that are decoded at once."""


class Kl:
    """Metric `kl`: KL(q || N(0, I)) of each posterior, the rate."""

    def start(self, setting: MetricSetting) -> None:
        self._nats, self._sizes = list[Tensor](), list[Tensor]()

    def add(self, batch: MetricBatch) -> None:
        self._nats.append(kl_nats(batch.posterior()))
        if batch.inputs is not None:
            self._sizes.append(_sizes(batch.inputs))

    def finish(self) -> Measured:
        nats = concatenate(self._nats)
        protocol = (
            "mean over samples of the KL of the posterior from N(0, I), summed over latent values"
        )
        sizes = concatenate(self._sizes) if self._sizes else None
        return _in_nats_and_bits(nats, sizes, protocol, "lower")


class Elbo:
    """Metric `elbo`, the evidence lower bound: log p(x | z) of draws minus the rate.

    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 3.

    Args:
        likelihood: "gaussian", "laplace" or "bernoulli".
        scale: the Gaussian's standard deviation or the Laplace distribution's scale, in units of
            the model's input; None is the one scale for all samples that makes the bound highest
            (Rybkin et al. 2021, eq. 5).
        num_draws: draws of each posterior that log p(x | z) is averaged over.
    """

    def __init__(self, likelihood: str, scale: float | None, num_draws: int) -> None:
        self._likelihood, self._scale, self._num_draws = likelihood, scale, num_draws

    def start(self, setting: MetricSetting) -> None:
        self._setting = setting
        self._nats, self._sizes, self._distances = list[Tensor](), list[Tensor](), list[Tensor]()

    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        noise = noise_for(batch, ELBO_STREAM)
        total = torch.zeros(len(inputs), dtype=torch.float64)
        for number in range(self._num_draws):
            # The first draw may be decoded already.
            if number > 0 or not batch.is_draw:
                output = _decode(batch, draw(batch.posterior(), noise.take(1)[0]))
            total += _distance(self._likelihood, inputs, output, self._setting).cpu()
        self._distances.append(total / self._num_draws)
        self._nats.append(kl_nats(batch.posterior()))
        self._sizes.append(_sizes(inputs))

    def finish(self) -> Measured:
        rates, distances, sizes = (
            concatenate(pieces) for pieces in (self._nats, self._distances, self._sizes)
        )
        scale = self._scale
        if self._likelihood in FAMILIES and scale is None:
            scale = (distances.sum() / sizes.sum()) ** (1 / FAMILIES[self._likelihood].power)
        distortions = _nats_of_distances(self._likelihood, distances, sizes, scale)
        chosen = (
            " (the best one for these samples)" if scale is not None and self._scale is None else ""
        )
        density = _describe_likelihood(self._likelihood, scale, self._setting)
        protocol = (
            f"{density}{chosen}; draws a sample: {self._num_draws}; reconstruction neither clamped"
            " nor rounded"
        )
        found = _in_nats_and_bits(
            -distortions - rates, None, f"mean over samples; {protocol}", "higher"
        )
        figures = dict(found.figures)
        figures["distortion"] = Figure(
            mean(distortions), "nats per sample", f"-log p(x | z); {protocol}", "lower"
        )
        figures["rate"] = Figure(
            mean(rates), "nats per sample", "KL of the posterior from N(0, I)", "lower"
        )
        if scale is not None:
            figures["scale"] = Figure(float(scale), "input", protocol)
        return Measured(
            figures, {"": -distortions - rates, "distortion": distortions, "rate": rates}
        )


class Iwae:
    """Metric `iwae`: importance-weighted negative log likelihood.

    Y. Burda, R. Grosse and R. Salakhutdinov, "Importance Weighted Autoencoders" (2016), eq. 8.

    Args:
        likelihood: as for `Elbo`.
        scale: as for `Elbo`, but not chosen here; None for "bernoulli".
        num_draws: importance samples of each posterior.
    """

    def __init__(self, likelihood: str, scale: float | None, num_draws: int) -> None:
        self._likelihood, self._scale, self._num_draws = likelihood, scale, num_draws

    def start(self, setting: MetricSetting) -> None:
        self._setting = setting
        self._nats, self._sizes = list[Tensor](), list[Tensor]()

    def add(self, batch: MetricBatch) -> None:
        inputs, moments = batch.pair()[0], batch.posterior()
        noise = noise_for(batch, IWAE_STREAM)
        weights = []
        for start in range(0, self._num_draws, DRAWS_AT_ONCE):
            drawn = noise.take(min(DRAWS_AT_ONCE, self._num_draws - start))
            latents = draw(moments, drawn)
            output = _decode(batch, latents.flatten(0, 1))
            repeated = inputs.expand(len(latents), *inputs.shape).flatten(0, 1)
            distances = _distance(self._likelihood, repeated, output, self._setting)
            nats = _log_density(self._likelihood, distances, inputs[0].numel(), self._scale)
            weights.append(nats.reshape(latents.shape[:2]) + _log_ratio(latents, drawn, moments))
        log_weights = torch.cat(weights)
        self._nats.append(math.log(self._num_draws) - torch.logsumexp(log_weights, dim=0))
        self._sizes.append(_sizes(inputs))

    def finish(self) -> Measured:
        density = _describe_likelihood(self._likelihood, self._scale, self._setting)
        protocol = (
            f"mean over samples of -log p(x) by {self._num_draws} importance samples of the"
            f" posterior; {density}"
        )
        return _in_nats_and_bits(
            concatenate(self._nats), concatenate(self._sizes), protocol, "lower"
        )


# ---------------------------------------------------------------- densities


def _log_ratio(latents: Tensor, drawn: Tensor, moments: Moments) -> Tensor:
    """Return log p(z) - log q(z | x) of latents (K, N, ...) and their noise, (K, N) float64."""
    z, noise = to_float64(latents), to_float64(drawn)
    return 0.5 * (noise.square() - z.square() + to_float64(moments.logvar)).flatten(2).sum(dim=2)


def _distance(likelihood: str, inputs: Tensor, output: Tensor, setting: MetricSetting) -> Tensor:
    """Return the sum of |error|^power of each sample, or a Bernoulli's nats, (N,) float64."""
    if likelihood in FAMILIES:
        return (
            (to_float64(inputs) - to_float64(output))
            .abs()
            .pow(FAMILIES[likelihood].power)
            .flatten(1)
            .sum(dim=1)
        )
    low, high = setting.input_range
    bits, probabilities = (
        (to_float64(values) - low) / (high - low) for values in (inputs, output)
    )
    probabilities = probabilities.clamp(SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    nats = bits * probabilities.log() + (1 - bits) * (1 - probabilities).log()
    return -nats.flatten(1).sum(dim=1)


def _log_density(likelihood: str, distances: Tensor, size: int, scale: float | None) -> Tensor:
    """Return log p(x | z) of each sample, given its summed distances and its number of values."""
    if likelihood not in FAMILIES:
        return -distances
    assert scale is not None
    family = FAMILIES[likelihood]
    return -(
        distances / (family.power * scale**family.power)
        + size * (math.log(scale) + family.log_constant)
    )


def _nats_of_distances(
    likelihood: str, distances: Floats, sizes: Floats, scale: float | None
) -> Floats:
    """Return -log p(x | z) of each sample; minus infinity if the best scale is 0, which it is when
    every output equals its input.
    """
    if likelihood not in FAMILIES:
        return distances
    assert scale is not None
    if scale == 0:
        return -math.inf * sizes
    family = FAMILIES[likelihood]
    nats: Floats = distances / (family.power * scale**family.power) + sizes * (
        math.log(scale) + family.log_constant
    )
    return nats


def _describe_likelihood(likelihood: str, scale: float | None, setting: MetricSetting) -> str:
    """Return the likelihood in words, for the protocol."""
    if scale is None:
        return (
            f"bernoulli likelihood of inputs mapped from {show_range(setting.input_range)} to"
            " [0, 1]"
        )
    return (
        f"{likelihood} density of values in {show_range(setting.input_range)} with scale"
        f" {scale:.6g}"
    )


# ---------------------------------------------------------------- decoding, nats and bits


def _decode(batch: MetricBatch, latents: Tensor) -> Tensor:
    assert batch.decode is not None
    return batch.decode(latents)


def _sizes(inputs: Tensor) -> Tensor:
    return torch.full((len(inputs),), float(inputs[0].numel()), dtype=torch.float64)


def _in_nats_and_bits(
    nats: Floats, sizes: Floats | None, protocol: str, better: Better
) -> Measured:
    """Return results in nats per sample, and in bits per input value if sizes are given."""
    figures = {"": Figure(mean(nats), "nats per sample", protocol, better)}
    if sizes is not None:
        bits = nats / (math.log(2) * sizes)
        figures[BITS] = Figure(mean(bits), "bits per input value", protocol, better)
    return Measured(figures, {"": nats})

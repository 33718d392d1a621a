"""How badly a variational autoencoder explains each item: reconstruction error, evidence lower
bound, likelihood regret. They need the items themselves and a decoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from latentkit.contracts import Measured, MetricBatch, MetricSetting, Moments
from latentkit.losses.kl import kl_nats
from latentkit.runtime.device import to_float64
from latentkit.uses.calibration import Scores

REGRET_RATE = 0.05
"""Adam's learning rate for the posterior's parameters."""


class DecodingScores:
    """A metric whose results per sample are `reconstruction`, the mean squared error of the decoded
    mean; `mean_square`, that of decoded draws of the posterior; `kl` of the posterior to N(0, I);
    and with `regret_steps` the likelihood `regret`. The last two are in nats per input value.

    Every item gets the same noise for its draws, so that a score depends on nothing but the item.

    The regret (Z. Xiao, Q. Yan and Y. Amit, "Likelihood Regret", 2020) is how much the evidence
    lower bound rises when the posterior is optimized for the one item. It needs gradients.

    Args:
        num_draws: draws of each posterior.
        scale: standard deviation of the decoder's Gaussian likelihood, in units of the input; for
            the regret.
        regret_steps: steps of Adam; 0: no regret.
        module: network whose method `decode` gives gradients; for the regret.
    """

    def __init__(
        self,
        num_draws: int,
        seed: int,
        scale: float | None = None,
        regret_steps: int = 0,
        module: nn.Module | None = None,
    ) -> None:
        self._num_draws, self._seed = num_draws, seed
        self._scale, self._regret_steps, self._module = scale, regret_steps, module

    def start(self, setting: MetricSetting) -> None:
        self._found: dict[str, list[Tensor]] = {}

    def add(self, batch: MetricBatch) -> None:
        inputs, output = batch.pair()
        found = {"reconstruction": _squared_error(inputs, output) / inputs[0].numel()}
        if batch.moments is not None:
            assert batch.decode is not None
            moments, noise = batch.moments, self._noise_like(batch.moments.mean)
            total = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
            for one in noise:
                drawn = moments.mean + (moments.logvar / 2).exp() * one
                total += _squared_error(inputs, batch.decode(drawn))
            found["mean_square"] = total / (len(noise) * inputs[0].numel())
            found["kl"] = to_float64(kl_nats(moments)) / inputs[0].numel()
            if self._regret_steps:
                found["regret"] = self._regret(inputs, moments, noise) / inputs[0].numel()
        for name, values in found.items():
            self._found.setdefault(name, []).append(values.cpu())

    def finish(self) -> Measured:
        return Measured({}, {name: torch.cat(found).numpy() for name, found in self._found.items()})

    def _noise_like(self, mean: Tensor) -> Tensor:
        """Return the noise of the draws, (draws, C, ...). Half of it is the negative of the other,
        and the mean square of each value is 1, as few draws otherwise miss both.
        """
        generator = torch.Generator().manual_seed(self._seed)
        half = torch.randn((-(-self._num_draws // 2), *mean.shape[1:]), generator=generator)
        noise = torch.cat([half, -half])[: self._num_draws]
        return (noise / noise.square().mean(0).sqrt()).to(mean)

    def _regret(self, inputs: Tensor, moments: Moments, noise: Tensor) -> Tensor:
        """Return the bound of the best posterior found minus that of the encoder's, (N,) nats."""
        assert self._scale is not None
        assert self._module is not None
        module, weight = self._module, 1 / (2 * self._scale**2)
        with torch.inference_mode(False), torch.enable_grad():
            inputs = inputs.clone()
            found = [moments.mean.clone(), moments.logvar.clone()]
            for values in found:
                values.requires_grad_(True)
            optimizer = torch.optim.Adam(found, lr=REGRET_RATE)
            first: Tensor | None = None
            best: Tensor | None = None
            for _ in range(self._regret_steps + 1):
                draws = found[0] + (found[1] / 2).exp() * noise[:, None]
                decoded = module.decode(draws.flatten(0, 1))  # type: ignore[operator]
                repeated = inputs.expand(len(noise), *inputs.shape).flatten(0, 1)
                errors = (repeated - decoded.float()).square().flatten(1).sum(1)
                rate = kl_nats(Moments(found[0], found[1]))
                loss = weight * errors.reshape(len(noise), -1).mean(0) + rate
                now = loss.detach().double()
                first = now if first is None else first
                best = now if best is None else torch.minimum(best, now)
                optimizer.zero_grad()
                loss.sum().backward()
                optimizer.step()
        assert first is not None
        assert best is not None
        return first - best


def negative_elbo(mean_square: Scores, kl: Scores, scale: float) -> Scores:
    """Return -ELBO in nats per input value, (N,), for a Gaussian likelihood.

    D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 3.

    Args:
        mean_square, kl: (N,) of `DecodingScores`.
        scale: the likelihood's standard deviation, in units of the input.
    """
    return mean_square / (2 * scale**2) + math.log(scale * math.sqrt(2 * math.pi)) + kl


def _squared_error(inputs: Tensor, output: Tensor) -> Tensor:
    """Return the sum of squared errors of each sample, (N,) float64."""
    return to_float64(inputs - output).square().flatten(1).sum(1)

"""Loss `bernoulli-nll`: the negative log likelihood of bits, in nats per input value, when the
decoder's output is their chance of being 1.

D. P. Kingma and M. Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1. The lowest value
of the input's range stands for 0, the highest for 1. With it a weight of 1 for `kl` gives the ELBO,
of which metric `iwae` with likelihood bernoulli is the tighter estimate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latentkit.contracts import LossBatch
from latentkit.losses.reconstruction import mean_over_values

SMALLEST_CHANCE = 1e-7
"""Of either value of a bit: a miss costs 16 nats at most."""


@dataclass(frozen=True)
class BernoulliNll:
    """Cross-entropy of inputs and output, both mapped from the input's range to [0, 1]; inputs in
    between count as shares of a bit.

    Args:
        input_range: lowest and highest value of the inputs, and of the output: a model ends in a
            sigmoid, scaled where need be. An output outside has no gradient.
    """

    input_range: tuple[float, float]

    def __call__(self, batch: LossBatch) -> Tensor:
        """(N,) float32, nats per input value."""
        low, high = self.input_range
        bits, chances = (
            (values.float() - low) / (high - low)
            for values in (batch.inputs, batch.reconstruction.output)
        )
        chances = chances.clamp(SMALLEST_CHANCE, 1 - SMALLEST_CHANCE)
        # torch's binary_cross_entropy computes value by value on a CPU, and takes twice the time
        return mean_over_values(-torch.lerp((1 - chances).log(), chances.log(), bits), batch.mask)

"""Loss `bernoulli-nll`: the negative log likelihood of targets, in nats per input value, when the
decoder's output is their probability of being 1.

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

LEAST_PROBABILITY = 1e-7
"""The least probability of either value of a bit, so that one value costs 16 nats at most."""


@dataclass(frozen=True)
class BernoulliNll:
    """Cross-entropy of inputs and output, both mapped from the input's range to [0, 1]; inputs
    between 0 and 1 count as probabilities of a 1.

    Args:
        input_range: lowest and highest value of the inputs, and of the output: the model ends in
            a sigmoid, scaled to this range. Output outside the range has no gradient.
    """

    input_range: tuple[float, float]

    def __call__(self, batch: LossBatch) -> Tensor:
        """Return the binary cross-entropy of each sample: (N,) float32, nats per input value."""
        low, high = self.input_range
        targets, probabilities = (
            (values.float() - low) / (high - low)
            for values in (batch.inputs, batch.reconstruction.output)
        )
        probabilities = probabilities.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
        # torch's binary_cross_entropy computes value by value on a CPU, and takes twice the time
        nats = -torch.lerp((1 - probabilities).log(), probabilities.log(), targets)
        return mean_over_values(nats, batch.mask)

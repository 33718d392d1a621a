"""Explains what the weight of `kl` means in other conventions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from latentkit.contracts import Loss
from latentkit.losses.kl import Kl
from latentkit.losses.reconstruction import l1, mse


def describe_kl(
    losses: Sequence[tuple[str, Loss, float]], num_values: int, num_latent_values: int
) -> list[str]:
    """Return lines to print; none when `kl` isn't among the losses or its weight is 0.

    Args:
        losses: name, loss and weight of each loss of a run; a name that contains "-nll" is a
            likelihood in nats per input value.
        num_values: number of values of one input sample.
        num_latent_values: number of values of its latent.
    """
    lines = []
    for _, loss, beta in losses:
        if isinstance(loss, Kl) and beta:
            if loss.target is None:
                lines += _describe_beta(beta, losses, num_values)
            else:
                bits = loss.target / (math.log(2) * num_values)
                lines.append(
                    f"kl: held at {loss.target:g} nats a sample ({bits:.3g} bits per dimension);"
                    " a larger weight holds it more strictly"
                )
            lines += _describe_options(loss, num_latent_values)
    return lines


def _describe_beta(
    beta: float, losses: Sequence[tuple[str, Loss, float]], num_values: int
) -> list[str]:
    """Return lines with the weight in other conventions, and the decoder whose ELBO the loss is."""
    lines = [
        f"kl: weight {beta:g} per input value, the same number where reconstruction and KL are both"
        f" summed (latent-diffusion); {beta / num_values:.3g} where the reconstruction is a mean"
        f" over {num_values:,} values and the KL a sum"
    ]
    for name, loss, weight in losses:
        if not weight:
            continue
        if "-nll" in name:
            return [
                *lines,
                f"kl: with {name} in nats that is beta {beta / weight:g}; 1 is the ELBO",
            ]
        if loss is mse:
            std = math.sqrt(
                beta / weight / 2
            )  # a Gaussian's nats are mse / (2 std^2) plus a constant
            return [
                *lines,
                (
                    "kl: that is the ELBO (beta 1) of a Gaussian decoder with standard deviation"
                    f" {std:.3g}"
                ),
            ]
        if loss is l1:
            return [
                *lines,
                (
                    "kl: that is the ELBO (beta 1) of a Laplace decoder with scale"
                    f" {beta / weight:.3g}"
                ),
            ]
    return lines


def _describe_options(loss: Kl, num_latent_values: int) -> list[str]:
    """Return lines about free bits and annealing."""
    lines = []
    if loss.free_bits is not None:
        most = loss.free_bits * num_latent_values
        lines.append(
            f"kl: the first {loss.free_bits:g} nats of each latent value are free, at most"
            f" {most:,.6g} nats a sample"
        )
    if loss.anneal is not None:
        rising = "weight" if loss.target is None else "target"
        lines.append(f"kl: its {rising} rises from 0 and stays whole from step {loss.anneal.steps}")
    return lines

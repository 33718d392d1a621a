"""Modality `latents`: latents that lie ready, handed on to the encoder `unknown`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample
from latentkit.errors import PluginError, RecipeError, SampleError
from latentkit.modalities.options import LatentsConfig
from latentkit.runtime.packed_latents import log_variance, unpack_latents

MOMENTS = ("mean", "logvar")


class LatentsModality:
    """Unpacks what `pack_latents` packed: (C, h, w) float32, or mean and log-variance as
    (2C, h, w). A bucket is named by the size that was encoded.
    """

    metrics: Sequence[str] = ()
    ignores_sizes = True

    def __init__(self, config: LatentsConfig, context: BuildContext) -> None:
        if context.input is None:
            raise RecipeError("the modality 'latents' needs the encoder 'unknown'")
        self._views, self._input = config.views, context.input
        self._downscale = _factors(config.downscale, context.input)

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """The views that were asked for.

        Raises:
            SampleError: one is missing, or has another shape than the first sample.
        """
        try:
            views, geometry = unpack_latents(sample.read())
        except (ValueError, TypeError) as error:
            raise SampleError(f"the media are {error}") from error
        missing = [view for view in self._views if view not in views]
        if missing:
            raise SampleError(
                f"it has no view {missing[0]!r} among {', '.join(sorted(views))}; import with"
                " modality.with.views that all samples have"
            )
        for view in self._views:
            tensor = self._check(stack_moments(views[view]))
            flips = {"flip": view == "hflip"} if "H" in self._input.axes.upper() else {}
            yield Prepared(view, self._bucket(tensor), tensor, {**geometry, **flips})

    def _check(self, tensor: Tensor) -> Tensor:
        axes, channels = self._input.axes, self._input.channels
        if tensor.ndim != len(axes) or tensor.shape[0] != channels:
            wanted = ", ".join([str(channels), *axes[1:]])
            raise SampleError(
                f"its latents have shape {tuple(tensor.shape)}, expected ({wanted}) as the first"
                " sample has it"
            )
        if not bool(tensor.isfinite().all()):
            raise SampleError("its latents are not finite")
        return tensor

    def _bucket(self, tensor: Tensor) -> str:
        sizes = zip(tensor.shape[1:], self._downscale, strict=True)
        return "x".join(f"{size * factor:g}" for size, factor in sizes)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Refuse: there are no media to look at.

        Raises:
            PluginError: always.
        """
        raise PluginError(
            "imported latents have no media to look at; decode them with latentkit.open(...).decode"
        )


def stack_moments(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return the latent, or mean and then log-variance along the channels, float32.

    Raises:
        SampleError: the tensors are named otherwise, or differ in shape.
    """
    names = set(tensors)
    if names == {"latent"}:
        return tensors["latent"].float()
    if names not in ({"mean", "logvar"}, {"mean", "std"}):
        raise SampleError(f"expected latent, or mean with logvar or std, got {sorted(names)}")
    mean = tensors["mean"]
    spread = tensors["logvar"].float() if "logvar" in names else log_variance(tensors["std"])
    if mean.shape != spread.shape:
        raise SampleError(f"its mean {tuple(mean.shape)} and {tuple(spread.shape)} differ in shape")
    return torch.cat([mean.float(), spread])


def _factors(downscale: Any, spec: InputSpec) -> tuple[float, ...]:
    """Return the factor of each axis but C.

    Raises:
        RecipeError: there are as many as the latents don't have axes.
    """
    count = len(spec.axes) - 1
    factors = downscale if isinstance(downscale, tuple) else (downscale or 1,) * count
    if len(factors) != count:
        raise RecipeError(
            f"modality.with.downscale: expected one number, or {count} for"
            f" {', '.join(spec.axes[1:].upper())}; got {list(factors)}"
        )
    return factors

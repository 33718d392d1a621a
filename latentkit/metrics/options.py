"""Options of core's metrics. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from latentkit.contracts.plugin_specs import Config

# ---------------------------------------------------------------- options


class ElboConfig(Config):
    """Metric `elbo`."""

    likelihood: Literal["gaussian", "laplace", "bernoulli"] = Field(
        "gaussian",
        description=(
            "density of the input around the decoder's output; bernoulli: the output is a"
            " probability"
        ),
    )
    scale: float | Literal["optimal"] = Field(
        "optimal",
        description=(
            "standard deviation, or Laplace scale, in units of the input; optimal: the best one for"
            " all samples together"
        ),
    )
    draws: int = Field(
        1, ge=1, description="draws from each posterior over which the distortion is averaged"
    )

    @model_validator(mode="after")
    def _usable_scale(self) -> Self:
        _check_scale(self.scale, self.likelihood)
        return self


class IwaeConfig(Config):
    """Metric `iwae`."""

    likelihood: Literal["gaussian", "laplace", "bernoulli"] = Field(
        "gaussian", description="as for elbo"
    )
    scale: float | None = Field(
        None,
        description=(
            "standard deviation, or Laplace scale, in units of the input; bernoulli has none"
        ),
    )
    draws: int = Field(1000, ge=1, description="importance samples of each posterior")

    @model_validator(mode="after")
    def _usable_scale(self) -> Self:
        if self.scale is None and self.likelihood != "bernoulli":
            raise ValueError(
                f"a {self.likelihood} likelihood needs a scale; elbo with scale: optimal finds one"
            )
        _check_scale("optimal" if self.scale is None else self.scale, self.likelihood)
        return self


def _check_scale(scale: float | str, likelihood: str) -> None:
    """Check that a likelihood has a usable scale."""
    if isinstance(scale, str):
        return
    if likelihood == "bernoulli":
        raise ValueError("scale: a bernoulli likelihood has none")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale: expected a number above 0, got {scale!r}")


class ActiveUnitsConfig(Config):
    """Metric `active-units`."""

    threshold: float = Field(
        0.01,
        gt=0,
        allow_inf_nan=False,
        description="variance over samples above which a posterior mean is active",
    )


class SpectrumConfig(Config):
    """Metric `latent-spectrum`."""

    bins: int | None = Field(
        None,
        ge=1,
        description=(
            "rings of frequencies up to half a cycle per latent; none: half the shorter side"
        ),
    )


class PluginUse(Config):
    """A plugin by name, with its options."""

    use: str = Field(min_length=1, description="name of the plugin")
    with_: dict[str, Any] = Field(
        default_factory=dict, alias="with", description="options of the plugin"
    )


class LossMetricConfig(PluginUse):
    """Metric `loss`."""

    use: str = Field(
        min_length=1,
        description="name of a loss plugin that compares output and input, such as perceptual",
    )


class RfidConfig(Config):
    """Metric `rfid`."""

    features: str | None = Field(
        None,
        description=(
            "feature network: weights of Inception v3 (.safetensors, or .pth read without pickle),"
            " or transformers folder"
        ),
    )
    encoder: PluginUse | None = Field(
        None, description="an encoder plugin that is the feature network instead"
    )

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if (self.features is None) == (self.encoder is None):
            got = "both" if self.features else "neither"
            raise ValueError(
                f"expected features (a weights file or a folder) or encoder (a plugin), got {got}"
            )
        return self

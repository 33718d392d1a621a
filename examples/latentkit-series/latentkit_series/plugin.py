"""The declarations of the plugin. Importing this loads no torch, so that `latentkit plugins` is
quick.
"""

from __future__ import annotations

from typing import Literal

from latentkit.contracts import (
    BuildContext,
    Config,
    Encoder,
    EncoderSpec,
    InputSpec,
    Modality,
    ModalitySpec,
    neutral,
)
from latentkit.hooks import hookimpl
from pydantic import Field


class SeriesConfig(Config):
    """Options of the modality `series`."""

    length: int = Field(512, ge=1, description="values of a row along time")
    crop: Literal["center", "random"] = Field(
        "center", description="part of a longer series: the middle, or drawn from seed and key"
    )
    full_scale: float = Field(
        1.0, gt=0, description="magnitude that becomes the end of the encoder's range"
    )


class SeriesKLConfig(Config):
    """Options of the encoder `series-kl`; with `model`, its config.json says the last three."""

    model: str | None = neutral(
        None, description="folder that training wrote; none: random weights, to be trained"
    )
    channels: int = neutral(1, ge=1, description="channels of a series")
    latent_channels: int = neutral(4, ge=1, description="channels of a latent")
    width: int = neutral(32, ge=1, description="channels inside the network")


def _build_series(config: SeriesConfig, context: BuildContext) -> Modality:
    from latentkit_series.modality import SeriesModality

    wanted = context.input or InputSpec(channels=1, axes="CL")
    return SeriesModality(config, wanted, context.seed)


def _build_series_kl(config: SeriesKLConfig, context: BuildContext) -> Encoder:
    from latentkit_series.encoder import open_series_kl

    return open_series_kl(config, context)


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    """The modality `series`."""
    summary = "time series (time, channels), as NumPy saves them"
    return ModalitySpec("series", summary, SeriesConfig, _build_series, suffixes=[".npy"])


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    """The encoder `series-kl`."""
    summary = "small 1-D KL autoencoder, to be trained on series of your own"
    return EncoderSpec("series-kl", summary, SeriesKLConfig, _build_series_kl)

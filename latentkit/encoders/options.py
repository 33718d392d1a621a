"""Options of the built-in encoders. Loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from latentkit.contracts import (
    Config,
    Use,
    neutral,
)

# ---------------------------------------------------------------- encoders

Precision = Literal["float32", "bfloat16", "float16"]


class DiffusersConfig(Config):
    """Options of the encoder `diffusers`."""

    model: str | None = neutral(
        None,
        description=(
            "folder, single file (.safetensors, .ckpt, .pt, .pth, .bin), hub id (owner/name, or"
            " owner/name/path) or hub page of the autoencoder"
        ),
    )
    config: str | None = neutral(
        None,
        description=(
            "name of a published autoencoder such as sdxl, or a config.json; with model: the"
            " config of its weights; without: train from random weights"
        ),
    )
    subfolder: str | None = neutral(
        None,
        description=(
            "folder inside the model's folder, such as vae; none: the first that accepts the"
            " modality"
        ),
    )
    revision: str | None = neutral(None, description="git revision on the hub; none: the newest")
    variant: str | None = neutral(
        None,
        description=(
            "which of several weights, such as fp16 (in a file's name) or ema (a name inside a"
            " checkpoint)"
        ),
    )
    dtype: Precision = Field("float32", description="the network computes in this")
    tiling: bool = Field(
        False, description="encode large inputs in overlapping tiles (changes their latents)"
    )
    indices: bool | None = Field(
        None,
        description=(
            "store indices into the codebook (true) or continuous latents (false); none: indices"
            " for VidTok fsq only"
        ),
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.model is None and self.config is None:
            raise ValueError(
                "give model (weights to load) or config (random weights, for training)"
            )
        return self


class TinyKLConfig(Config):
    """Options of the encoders `tiny-kl` and `tiny-kl-16`."""

    model: str | None = neutral(
        None, description="folder that training wrote; none: the weights inside the package"
    )
    init: Literal["weights", "random"] = neutral(
        "weights",
        description=("start from those weights, or from random weights to train from scratch"),
    )
    dtype: Precision = Field("float32", description="the network computes in this")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.model is not None and self.init == "random":
            raise ValueError("give model (weights to load) or init: random, not both")
        return self


Constant = float | tuple[float, ...]


class UnknownConfig(Config):
    """Options of the encoder `unknown`; `latentkit import` sets them."""

    kind: Literal["gaussian", "deterministic"] = Field(
        description="gaussian: mean and log-variance are there; deterministic: one latent each"
    )
    axes: str = Field("CHW", pattern="^C[A-Z]*$", description="of a latent: CHW, CTHW, CL")
    channels: int = Field(ge=1, description="of a raw latent")
    downscale: int | tuple[int | float, ...] | None = Field(
        None,
        description=(
            "input size over latent size, one number or one for each axis but C; null: unknown"
        ),
    )
    shift: Constant | None = neutral(
        None, description="a trainer's latent is (raw - shift) * scale; null: 0"
    )
    scale: Constant | None = neutral(
        None, description="a number, or one for each channel; null: unknown, taken as 1"
    )
    fold: dict[str, int] = Field(
        {}, description="factor of each latent axis that normalizing moves into channels first"
    )
    normalized: bool = Field(
        False, description="the latents were normalized already; they are stored raw"
    )
    decoder: Use | None = neutral(
        None, description="encoder that made them, as the user says; null: unknown"
    )

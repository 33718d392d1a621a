"""Options of core's losses. Loads no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.contracts import Config

LOWEST_LOG_SCALE = -6.0
"""Natural log of the smallest scale that is learned or computed: e^-6 = 0.0025, the error that
rounding to 8 bits adds in [-1, 1].
"""

# ---------------------------------------------------------------- reconstruction


class LikelihoodConfig(Config):
    """Losses `laplace-nll` and `gaussian-nll`."""

    scale: float | Literal["optimal", "learned"] = Field(
        "optimal",
        description=(
            "of the errors, in units of the input: a number, the best for each batch (optimal), or"
            " a parameter (learned)"
        ),
    )
    initial_scale: float = Field(
        0.1, gt=0.0025, allow_inf_nan=False, description="scale: learned starts here"
    )

    @field_validator("scale")
    @classmethod
    def _positive(cls, scale: float | str) -> float | str:
        if not isinstance(scale, str) and not 0 < scale < float("inf"):
            raise ValueError("expected a number above 0, optimal or learned")
        return scale

    @model_validator(mode="after")
    def _something_learned(self) -> Self:
        if "initial_scale" in self.model_fields_set and self.scale != "learned":
            raise ValueError(
                "initial_scale needs scale: learned; set it, or leave initial_scale out"
            )
        return self


class WaveletConfig(Config):
    """Loss `wavelet`."""

    levels: int = Field(1, ge=1, le=8, description="times that the low frequencies are split again")


# ---------------------------------------------------------------- latent


class AnnealConfig(Config):
    """How a weight rises from 0 to 1."""

    kind: Literal["linear", "cyclic"] = Field(
        "linear", description="linear: rises once; cyclic: rises again in each cycle"
    )
    steps: int = Field(ge=1, description="optimizer steps after which it stays 1")
    cycles: int = Field(4, ge=1, description="cyclic: times that it rises from 0")
    ratio: float = Field(
        0.5, gt=0, le=1, description="cyclic: share of each cycle in which it rises; then it is 1"
    )

    @model_validator(mode="after")
    def _cyclic_options(self) -> Self:
        if self.kind == "linear" and {"cycles", "ratio"} & self.model_fields_set:
            raise ValueError("cycles and ratio need kind: cyclic; set it, or leave them out")
        if self.kind == "cyclic" and self.steps < 2 * self.cycles:
            raise ValueError(
                f"steps: {self.steps} is too few for {self.cycles} cycles: each needs a step at 0"
                f" and one above; give at least {2 * self.cycles} steps, or fewer cycles"
            )
        return self


class KlConfig(Config):
    """Loss `kl`."""

    free_bits: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description=(
            "nats per latent value that a channel, averaged over a sample's positions, has free"
        ),
    )
    target: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="rate in nats per sample to hold: the loss is then the distance from it",
    )
    anneal: AnnealConfig | None = Field(
        None,
        description="rise of the loss (of target, where there is one) from 0; none: whole at once",
    )

    @model_validator(mode="after")
    def _one_aim(self) -> Self:
        if self.free_bits is not None and self.target is not None:
            raise ValueError("give free_bits or target, not both")
        return self


class EquivarianceConfig(Config):
    """Loss `equivariance`."""

    p: float = Field(
        0.5,
        gt=0,
        le=1,
        description="share of the steps in which the loss is computed; in the others it is 0",
    )
    scales: tuple[float, float] = Field(
        (0.25, 1.0),
        description=(
            "latents are shrunk by a multiple of 1/32, from the first up to below the second; equal"
            " ones: by just that"
        ),
    )
    rotate: bool = Field(True, description="turn by 0, 90, 180 or 270 degrees too")

    @field_validator("scales")
    @classmethod
    def _growing_shares(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scales[0] <= scales[1] <= 1:
            raise ValueError("must be two numbers above 0 and at most 1, the smaller one first")
        return scales


class FeatureAlignmentConfig(Config):
    """Loss `feature-alignment`."""

    channels: int = Field(ge=1, description="latent channels of the model that is trained")
    model: str | None = Field(
        None,
        description=(
            "folder of the feature network, as transformers saves it (DINOv2, ViT, ResNet ...)"
        ),
    )
    encoder: str | None = Field(
        None, description="name of an encoder plugin that is the feature network instead"
    )
    options: dict[str, Any] = Field({}, description="options of that encoder, as under its with")
    matrix_margin: float = Field(
        0.25, ge=0, lt=2, description="difference of two cosine similarities that costs nothing"
    )
    cosine_margin: float = Field(
        0.5,
        ge=0,
        lt=2,
        description="cosine distance of a latent from its feature that costs nothing",
    )

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        if (self.model is None) == (self.encoder is None):
            raise ValueError(
                "give model (a transformers folder) or encoder (a plugin)"
                + (", not both" if self.model else "")
            )
        if self.options and self.encoder is None:
            raise ValueError("options needs an encoder; name one, or leave options out")
        return self


# ---------------------------------------------------------------- adversarial


class PatchGanConfig(Config):
    """Loss `patch-gan`."""

    objective: Literal["hinge", "vanilla"] = Field(
        "hinge", description="hinge, or cross-entropy with the non-saturating generator term"
    )
    num_layers: int = Field(3, ge=1, le=8, description="convolutions that halve the image")
    width: int = Field(64, ge=1, description="channels of the first layer")
    norm: Literal["group", "batch", "none"] = Field(
        "group",
        description=(
            "between layers; batch, as latent-diffusion has it, mixes the samples of a batch and"
            " fails for batches of one"
        ),
    )
    lecam: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of the LeCam regularizer in the discriminator's loss",
    )

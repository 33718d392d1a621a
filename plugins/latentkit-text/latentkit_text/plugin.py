"""Plugin declarations. Importing this loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import (
    BuildContext,
    Config,
    Encoder,
    EncoderSpec,
    Modality,
    ModalitySpec,
    neutral,
)
from latentkit.hooks import hookimpl


class TextConfig(Config):
    """Options of the modality `text`."""

    column: str | None = Field(
        "text", description="attribute that contains the text; null: the media is the text"
    )
    on_empty: Literal["skip", "encode"] = Field(
        "skip", description="whether an empty text is skipped (and recorded) or encoded"
    )
    on_long: Literal["truncate", "skip"] = Field(
        "truncate",
        description=(
            "whether a text with more than max_length tokens is cut (the number is recorded) or"
            " skipped"
        ),
    )
    max_characters: int = Field(
        20_000,
        gt=0,
        description="texts with more characters are skipped, because they aren't captions",
    )

    @property
    def media_attribute(self) -> str | None:
        """Return the attribute that latentkit passes as media."""
        return self.column


class TextEncoderConfig(Config):
    """Options of the encoder `text-encoder`."""

    model: str = neutral(
        ...,
        description=(
            "hub id or folder of a text encoder, or of a pipeline that has one in subfolder"
        ),
    )
    subfolder: str | None = neutral(
        None,
        description="folder of the network inside model; none: model itself, else text_encoder",
    )
    tokenizer: str | None = neutral(
        None,
        description=(
            "folder of the tokenizer inside model; none: that of the network, else tokenizer"
        ),
    )
    revision: str | None = neutral(None, description="git revision on the hub; none: the newest")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="the network computes in this"
    )
    max_length: int | None = Field(
        None, gt=0, description="most tokens of a text; none: the tokenizer's limit"
    )
    padding: Literal["none", "max_length"] = Field(
        "none",
        description=(
            "store texts at their own length, or padded to max_length as some pipelines feed their"
            " network"
        ),
    )
    attend_padding: bool = Field(
        False,
        description=(
            "with padding max_length: let tokens see the padding, as Stable Diffusion and FLUX do"
        ),
    )
    layer: int = Field(
        -1,
        lt=0,
        description="hidden layer from the end; -1: the last, normalized as the network does it",
    )
    output: Literal["tokens", "pooled"] = Field(
        "tokens", description="one vector per token, or one per text"
    )


def _build_text(config: TextConfig, context: BuildContext) -> Modality:
    from latentkit_text.modality import TextModality

    return TextModality(config, context)


def _build_text_encoder(config: TextEncoderConfig, context: BuildContext) -> Encoder:
    from latentkit_text.loading import open_text_encoder

    return open_text_encoder(config, context)


@hookimpl
def latentkit_modalities() -> ModalitySpec:
    """Declare the modality `text`."""
    return ModalitySpec("text", "captions and other texts, as tokens", TextConfig, _build_text)


@hookimpl
def latentkit_encoders() -> EncoderSpec:
    """Declare the encoder `text-encoder`."""
    return EncoderSpec(
        "text-encoder",
        "CLIP, T5, or another text encoder of transformers",
        TextEncoderConfig,
        _build_text_encoder,
    )

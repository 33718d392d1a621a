"""Options of the sources of trainers' caches. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import Config

Family = Literal["sd", "sdxl", "sd3", "flux", "lumina", "hunyuan-image"]


class CacheConfig(Config):
    """Options of a source of a trainer's cache."""

    path: str = Field(description="folder of the cache")


class KohyaCacheConfig(CacheConfig):
    """Options of `kohya`."""

    family: Family | None = Field(
        None, description="models whose latents to read; null: the only one that is there"
    )


class MdsCacheConfig(CacheConfig):
    """Options of `mds`."""

    latent: str | None = Field(
        None,
        description=(
            "column of the latents; null: latents, latent, latents_256 or latents_512, or the only"
            " array"
        ),
    )
    shape: tuple[int, ...] | None = Field(
        None, description="(C, h, w) of a column of bytes; null: square, as the name says, at 8 x"
    )
    dtype: Literal["float16", "float32"] = Field(
        "float16", description="of the values in a column of bytes"
    )
    text: str | None = Field(
        "caption", description="column of captions, which become the attribute text; null: none"
    )

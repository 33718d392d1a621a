"""Options of core's exporters. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import DrawConfig

DTYPE = "type of values in the files; null: float32 for latents, the stored type for moments"


class RowsConfig(DrawConfig):
    """Options of both exporters."""

    values: Literal["latent", "moments"] = Field(
        "latent",
        description=(
            "latent: normalized as a trainer sees it; moments: mean and logvar as stored, raw"
        ),
    )
    posterior: Literal["draw", "mean"] = Field(
        "mean",
        description=(
            "for values=latent. mean: the posterior's mean; draw: mean + exp(logvar / 2) * noise,"
            " drawn once and fixed in the files"
        ),
    )


class SafetensorsConfig(RowsConfig):
    """Exporter `safetensors`."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(None, description=DTYPE)


class WebdatasetConfig(RowsConfig):
    """Exporter `webdataset`."""

    dtype: Literal["float32", "float16"] | None = Field(None, description=DTYPE)
    part: Literal["latent"] | None = Field(
        "latent",
        description=(
            "name of a latent in 00000000.NAME.npy; null: 00000000.npy, as"
            " stable-audio-tools reads it"
        ),
    )
    padding_mask: bool = Field(
        False,
        description=(
            "add padding_mask (1 or 0 for each position along the last axis) and, of audio,"
            " seconds_total to .json, as stable-audio-tools reads them"
        ),
    )
    rows_per_shard: int = Field(10_000, ge=1, description="rows in one tar file")


class DatasetsConfig(RowsConfig):
    """Exporter `datasets`."""

    dtype: Literal["float32", "float16"] | None = Field(None, description=DTYPE)
    rows_per_file: int = Field(2048, ge=1, description="rows in one parquet file, at most")

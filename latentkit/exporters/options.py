"""Options of core's exporters. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentkit.contracts import Config


class SafetensorsConfig(Config):
    """Exporter `safetensors`."""

    values: Literal["latent", "moments"] = Field(
        "latent",
        description=(
            "latent: the mean, normalized as a trainer sees it; moments: mean and logvar as"
            " stored, raw"
        ),
    )


class WebdatasetConfig(SafetensorsConfig):
    """Exporter `webdataset`."""

    rows_per_shard: int = Field(10_000, ge=1, description="rows in one tar file")

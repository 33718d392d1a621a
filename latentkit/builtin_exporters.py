"""Core's own exporters: config classes and declarations. Loads no torch; `latentkit.builtin` hands its hook on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from latentkit.contracts import BuildContext, Config, ExporterSpec
from latentkit.hooks import hookimpl


class SafetensorsConfig(Config):
    """Exporter `safetensors`."""

    values: Literal["latent", "moments"] = Field(
        "latent", description="latent: the mean, normalised as a trainer sees it; moments: mean and logvar as stored, raw"
    )


class WebdatasetConfig(SafetensorsConfig):
    """Exporter `webdataset`."""

    rows_per_shard: int = Field(10_000, ge=1, description="rows in one tar file")


def _build_safetensors(config: SafetensorsConfig, context: BuildContext) -> Any:
    from latentkit.exporters.safetensors import SafetensorsExporter

    return SafetensorsExporter(config.values)


def _build_webdataset(config: WebdatasetConfig, context: BuildContext) -> Any:
    from latentkit.exporters.webdataset import WebdatasetExporter

    return WebdatasetExporter(config.values, config.rows_per_shard)


@hookimpl
def latentkit_exporters() -> Iterator[ExporterSpec]:
    yield ExporterSpec("safetensors", "a .safetensors file per row, and metadata.jsonl", SafetensorsConfig, _build_safetensors)
    yield ExporterSpec("webdataset", "tar files for the library webdataset", WebdatasetConfig, _build_webdataset)

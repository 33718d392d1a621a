"""Core's own exporters: config classes and declarations.

Loads no torch; `latentkit.builtin` hands its hook on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from latentkit.contracts import BuildContext, ExporterSpec
from latentkit.exporters.options import DatasetsConfig, SafetensorsConfig, WebdatasetConfig
from latentkit.hooks import hookimpl


def _build_datasets(config: DatasetsConfig, context: BuildContext) -> Any:
    from latentkit.exporters.datasets import DatasetsExporter

    return DatasetsExporter(config)


def _build_safetensors(config: SafetensorsConfig, context: BuildContext) -> Any:
    from latentkit.exporters.safetensors import SafetensorsExporter

    return SafetensorsExporter(config)


def _build_webdataset(config: WebdatasetConfig, context: BuildContext) -> Any:
    from latentkit.exporters.webdataset import WebdatasetExporter

    return WebdatasetExporter(config)


@hookimpl
def latentkit_exporters() -> Iterator[ExporterSpec]:
    yield ExporterSpec(
        "datasets",
        "parquet files for load_dataset of the library datasets",
        DatasetsConfig,
        _build_datasets,
    )
    yield ExporterSpec(
        "safetensors",
        "a .safetensors file per row, and metadata.jsonl; load_dataset doesn't read it",
        SafetensorsConfig,
        _build_safetensors,
    )
    yield ExporterSpec(
        "webdataset", "tar files for the library webdataset", WebdatasetConfig, _build_webdataset
    )

"""Shared by the formats of single rows: tensors and labels, and a description of the values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.exporters.options import RowsConfig

DESCRIPTION = "latents.json"

TO_JSON = json.JSONEncoder(ensure_ascii=False).encode


def needs_of(config: RowsConfig) -> ExportNeeds:
    """Return the needs: single rows, and stored moments if the export writes moments."""
    return ExportNeeds(per="row", moments=config.values == "moments")


def tensors_of(item: ExportItem, values: str, dtype: str | None) -> dict[str, Tensor]:
    """Return the tensors of a row by name.

    Args:
        values: "latent" gives the normalized latent, (C, h, w) float32, or the "indices" of a
            quantized encoder. "moments" gives raw "mean" and "logvar", in the stored dtype. Where
            rows have a mask, "latent_mask" is added.
        dtype: name of the torch dtype to convert latents to; None: no conversion.
    """
    row, name = item.row, "indices" if "indices" in item.row.stored else "latent"
    is_stored = values == "moments" or name == "indices"
    tensors = dict(row.stored) if is_stored else {name: row.latent}
    if dtype is not None and name == "latent":
        tensors = {key: value.to(getattr(torch, dtype)) for key, value in tensors.items()}
    return tensors if row.mask is None else {**tensors, f"{name}_mask": row.mask}


def labels_of(item: ExportItem) -> dict[str, Any]:
    """Return key, attributes and view of a row as values that JSON can hold."""
    labels = {"key": item.key, **item.attributes, "view": item.row.view}
    return {name: _plain(value) for name, value in labels.items()}


def _plain(value: Any) -> Any:
    """Return the value with None for nan and infinity, which JSON can't hold."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_description(export: Export, config: RowsConfig, folder: Path) -> None:
    """Write latents.json: how the values were normalized and which encoder made them."""
    drawn = config.values == "latent" and config.posterior == "draw"
    description = {
        "values": config.values,
        **({"posterior": "draw", "seed": config.seed} if drawn else {}),
        "fingerprint": export.fingerprint,
        "layout": asdict(export.layout),
        "normalization": asdict(export.normalization),
        "statistics": export.statistics,
    }
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

"""Writes the output of an evaluation: metrics.json, samples.parquet, report.html and the recipe."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latentkit.errors import StoreError
from latentkit.evaluation.evaluate import Evaluation
from latentkit.evaluation.html_report import write_report
from latentkit.metrics.metric import Floats
from latentkit.runtime.yaml_files import parse_yaml
from latentkit.store.columns import escape
from latentkit.store.folder import Folder

RECIPE, METRICS, SAMPLES, REPORT = "recipe.yaml", "metrics.json", "samples.parquet", "report.html"


def claim_folder(folder: Folder, recipe: str) -> None:
    """Make the folder this evaluation's: results of an earlier one are removed, so that none of
    another recipe remain.

    Raises:
        StoreError: the folder can't be written, or contains something other than an evaluation.
    """
    if names := folder.top_names():
        values = (
            parse_yaml(folder.read(RECIPE).decode(errors="replace"), f"{folder}/{RECIPE}")
            if RECIPE in names
            else None
        )
        if not isinstance(values, Mapping) or values.get("task") != "evaluate":
            raise StoreError(
                f"{folder} contains something other than an evaluation. Choose another output.path"
            )
    for name in (METRICS, SAMPLES, REPORT):
        folder.remove(name)
    folder.replace(RECIPE, recipe.encode())


def write_evaluation(folder: Folder, found: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the three files; metrics.json is last.

    Args:
        about: what was evaluated, and with what: plain values for metrics.json and the report.

    Raises:
        StoreError: the disk is full, or the folder can't be written.
    """
    document = {**about, **summarize(found)}
    folder.replace(SAMPLES, samples_parquet(found))
    folder.replace(REPORT, write_report(document, found).encode())
    folder.replace(
        METRICS,
        (json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
    )
    folder.discard_if_empty()  # the folder for unfinished files


def summarize(found: Evaluation) -> dict[str, Any]:
    """Return the content of metrics.json. A number that isn't finite is the text "inf", "-inf" or
    "nan", because JSON has no such number.
    """
    metrics = {}
    for name, figure in found.figures.items():
        spread = _spread(found.per_sample[name]) if name in found.per_sample else {}
        about = {"unit": figure.unit, "better": figure.better, "count": found.num_samples}
        metrics[name] = {"value": figure.value, **about, **spread, "protocol": figure.protocol}
    configs = [table["model_config"] for table in found.tables.values() if "model_config" in table]
    plain: dict[str, Any] = _plain(
        {
            "num_samples": found.num_samples,
            "num_skipped": len(found.rows) - found.num_samples,
            "metrics": metrics,
            "model_config": configs[0] if configs else None,
            "tables": found.tables,
            "warnings": list(found.warnings),
        }
    )
    return plain


def samples_parquet(found: Evaluation) -> bytes:
    """Return one row per sample and view in the source's order: key, view, bucket, reason (null for
    a good one), and its number for each metric.
    """
    good = np.array([not row.reason for row in found.rows])
    columns: dict[str, Any] = {
        "key": [escape(row.key) for row in found.rows],
        "view": [row.view or None for row in found.rows],
        "bucket": [row.bucket or None for row in found.rows],
        "reason": [escape(row.reason) or None for row in found.rows],
    }
    arrays = {name: pa.array(values, pa.string()) for name, values in columns.items()}
    for name, values in found.per_sample.items():
        complete = np.full(len(good), np.nan)
        complete[good] = values
        arrays[f"metric.{name}" if name in arrays else name] = pa.array(complete, mask=~good)
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    return buffer.getvalue()


def _spread(values: Floats) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        return {"std": float(values.std()), "min": float(values.min()), "max": float(values.max())}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value

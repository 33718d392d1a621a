"""What every format writes of a latent dataset: its rows, and how to read their values."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from latentkit.errors import StoreError

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset

Values = Literal["latent", "moments"]

DESCRIPTION = "latents.json"


def read_rows(
    dataset: LatentDataset, values: Values
) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors by name, and key, view and attributes, of each row in order.

    Args:
        values: "latent" gives what a trainer sees: the mean, normalized, (C, h, w) float32; of a
            quantized encoder the "indices". "moments" gives raw "mean" and "logvar", in the stored
            dtype. Either with "latent_mask" beside it, where rows have one.

    Raises:
        StoreError: moments are wanted, and none are stored.
    """
    if values == "moments" and not dataset.has_moments:
        raise StoreError(
            f"{dataset.folder}: values=moments needs stored moments, of which there are none;"
            " expected values=latent"
        )
    for index in range(len(dataset)):
        row = dataset[index]
        labels = {
            name: _plain(value) for name, value in row.items() if not isinstance(value, Tensor)
        }
        tensors = {name: value for name, value in row.items() if isinstance(value, Tensor)}
        if values == "moments":
            del tensors[dataset.output_name]
            tensors |= dataset.moments(index)
        yield tensors, labels


def _plain(value: Any) -> Any:
    """The value as JSON has it: numbers that are not finite, which it hasn't, are None."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_description(dataset: LatentDataset, values: Values, folder: Path) -> None:
    """Write what a trainer must know of the values: how they were normalized, and by which encoder
    they were made.
    """
    said = {
        "values": values,
        "fingerprint": dataset.fingerprint,
        "layout": asdict(dataset.layout),
        "normalization": asdict(dataset.normalization),
        "statistics": dataset.statistics,
    }
    (folder / DESCRIPTION).write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")

"""Exporter `safetensors`: a file per row, and metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from latentkit.errors import StoreError
from latentkit.exporters.rows import Values, read_rows, write_description

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset

ROWS_PER_FOLDER = 10_000
"""File systems and people are slow with folders that hold more."""


class SafetensorsExporter:
    """Files are numbered, since a key may hold anything; metadata.jsonl has file_name, key, view
    and attributes of each, and the entry "row" of a file's own header all but the first of these,
    as JSON.

    Args:
        values: as for `read_rows`.
    """

    def __init__(self, values: Values) -> None:
        self._values = values

    def export(self, dataset: LatentDataset, folder: Path) -> None:
        """Write 0000/00000000.safetensors and so on, metadata.jsonl and latents.json.

        Raises:
            StoreError: moments are wanted, and none are stored; or rows have an attribute
                "file_name".
        """
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as listing:
            for number, (tensors, labels) in enumerate(read_rows(dataset, self._values)):
                if "file_name" in labels:
                    raise StoreError(
                        f"{dataset.folder}: rows have an attribute 'file_name', which"
                        " metadata.jsonl needs for its own files"
                    )
                name = f"{number // ROWS_PER_FOLDER:04d}/{number:08d}.safetensors"
                (folder / name).parent.mkdir(exist_ok=True)
                whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
                # one entry, since the library writes several in an order that changes
                save_file(whole, folder / name, {"row": json.dumps(labels, ensure_ascii=False)})
                listing.write(json.dumps({**labels, "file_name": name}, ensure_ascii=False) + "\n")
        write_description(dataset, self._values, folder)

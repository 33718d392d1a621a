"""Exporter `safetensors`: a file per row, and metadata.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file

from latentkit.contracts import Export, ExportItem
from latentkit.errors import StoreError
from latentkit.exporters.options import SafetensorsConfig
from latentkit.exporters.rows import labels_of, needs_of, tensors_of, write_description

ROWS_PER_FOLDER = 10_000
"""File systems are slow with folders of more files."""


class SafetensorsExporter:
    """Writes numbered files, since a key may contain any character.

    metadata.jsonl has file_name, key, view and attributes of each file. The entry "row" in a file's
    own header has the same as JSON, without file_name.
    """

    def __init__(self, config: SafetensorsConfig) -> None:
        self._config = config
        self.needs = needs_of(config)

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[str]:
        """Write 0000/00000000.safetensors and so on; returns the lines of metadata.jsonl.

        Raises:
            StoreError: rows have an attribute "file_name".
        """
        lines = []
        for item in items:
            labels = labels_of(item)
            if "file_name" in labels:
                raise StoreError(
                    "rows have an attribute 'file_name', a name that metadata.jsonl needs for the"
                    " exported files; rename the attribute in the source"
                )
            name = f"{item.number // ROWS_PER_FOLDER:04d}/{item.number:08d}.safetensors"
            (folder / name).parent.mkdir(exist_ok=True)
            tensors = tensors_of(item, self._config.values, self._config.dtype)
            whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
            # one entry, since the library writes several in an order that changes
            save_file(whole, folder / name, {"row": json.dumps(labels, ensure_ascii=False)})
            lines.append(json.dumps({**labels, "file_name": name}, ensure_ascii=False))
        return lines

    def finish(self, records: Iterable[str], folder: Path, export: Export) -> str:
        """Write metadata.jsonl and latents.json."""
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as listing:
            listing.writelines(f"{line}\n" for line in records)
        write_description(export, self._config, folder)
        return ""

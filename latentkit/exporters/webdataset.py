"""Exporter `webdataset`: tar files as the library webdataset reads them, a .npy per tensor and a
.json per row.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import Export, ExportItem
from latentkit.exporters.options import WebdatasetConfig
from latentkit.exporters.rows import labels_of, needs_of, tensors_of, write_description


class WebdatasetExporter:
    """Writes numbered samples, as a key may contain any character; .json has key, view, attributes.
    """

    def __init__(self, config: WebdatasetConfig) -> None:
        self._config = config
        self.needs = needs_of(config)
        self.items_per_part = config.rows_per_shard

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[None]:
        """Write one shard, such as 000000.tar."""
        items = iter(items)
        first = next(items)
        shard = f"{first.number // self.items_per_part:06d}.tar"
        with tarfile.open(folder / shard, "w", format=tarfile.USTAR_FORMAT) as tar:
            for item in itertools.chain([first], items):
                tensors = tensors_of(item, self._config.values, self._config.dtype)
                for name, tensor in tensors.items():
                    _add(tar, f"{item.number:08d}.{name}.npy", _npy(tensor))
                labels = json.dumps(labels_of(item), ensure_ascii=False).encode()
                _add(tar, f"{item.number:08d}.json", labels)
        return []

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Write latents.json."""
        write_description(export, self._config, folder)
        return ""


def _npy(tensor: Tensor) -> bytes:
    """Return the bytes of a .npy file; bfloat16, which NumPy lacks, becomes float32."""
    file = io.BytesIO()
    np.save(
        file,
        (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(),
        allow_pickle=False,
    )
    return file.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file without owner and time, so that the same rows give the same bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))

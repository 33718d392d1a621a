"""Exporter `webdataset`: tar files as the library webdataset reads them, a .npy per tensor and a
.json per row.
"""

from __future__ import annotations

import itertools
import math
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from latentkit.contracts import Export, ExportItem
from latentkit.exporters.options import WebdatasetConfig
from latentkit.exporters.rows import TO_JSON, labels_of, needs_of, tensors_of, write_description
from latentkit.runtime.numpy_files import npy_bytes

BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)
"""The header of a file without name, owner, time and content."""


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
        with (folder / shard).open("wb", buffering=1 << 20) as tar:
            for item in itertools.chain([first], items):
                tensors = tensors_of(item, self._config.values, self._config.dtype)
                for name, tensor in tensors.items():
                    is_nameless = name == "latent" and self._config.part is None
                    part = "npy" if is_nameless else f"{name}.npy"
                    _add(tar, f"{item.number:08d}.{part}", _npy(tensor))
                labels = TO_JSON(self._labels_of(item)).encode()
                _add(tar, f"{item.number:08d}.json", labels)
            end = tar.tell() + 2 * tarfile.BLOCKSIZE
            tar.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        return []

    def _labels_of(self, item: ExportItem) -> dict[str, Any]:
        labels = labels_of(item)
        if self._config.padding_mask:
            labels["padding_mask"] = item.row.padding_mask
            if item.row.seconds is not None:
                labels["seconds_total"] = math.ceil(item.row.seconds)
        return labels

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Write latents.json."""
        write_description(export, self._config, folder)
        return ""


def _npy(tensor: Tensor) -> bytes:
    """Return the bytes of a .npy file; bfloat16, which NumPy lacks, becomes float32."""
    return npy_bytes((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _add(tar: BinaryIO, name: str, content: bytes) -> None:
    """Add a file as `tarfile` does, which takes longer for headers than for all else."""
    header = bytearray(BLANK)
    header[: len(name)] = name.encode()
    header[124:135] = b"%011o" % len(content)
    header[148:156] = b" " * 8  # so the checksum counts itself
    header[148:155] = b"%06o\0" % sum(header)
    tar.write(header)
    tar.write(content)
    tar.write(bytes(-len(content) % tarfile.BLOCKSIZE))

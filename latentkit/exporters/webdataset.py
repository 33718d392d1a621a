"""Exporter `webdataset`: tar files as the library webdataset reads them, a .npy per tensor and a
.json per row.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from latentkit.exporters.rows import Values, read_rows, write_description

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset


class WebdatasetExporter:
    """Samples are numbered, since a key may hold anything; each one's .json has key, view and
    attributes.

    Args:
        values: as for `read_rows`.
        rows_per_shard: rows of one tar file.
    """

    def __init__(self, values: Values, rows_per_shard: int) -> None:
        self._values, self._rows_per_shard = values, rows_per_shard

    def export(self, dataset: LatentDataset, folder: Path) -> None:
        """Write 000000.tar and so on, and latents.json.

        Raises:
            StoreError: moments are wanted, and none are stored.
        """
        rows = enumerate(read_rows(dataset, self._values))
        for shard in itertools.count():
            some = list(itertools.islice(rows, 1))
            if not some:
                break
            with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
                for number, (tensors, labels) in itertools.chain(
                    some, itertools.islice(rows, self._rows_per_shard - 1)
                ):
                    for name, tensor in tensors.items():
                        _add(tar, f"{number:08d}.{name}.npy", _npy(tensor))
                    _add(tar, f"{number:08d}.json", json.dumps(labels, ensure_ascii=False).encode())
        write_description(dataset, self._values, folder)


def _npy(tensor: Tensor) -> bytes:
    """A .npy file; bfloat16, which NumPy hasn't, as float32."""
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

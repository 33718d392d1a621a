"""Exporter `energon`: tar files with the metadata of Megatron Energon (its `CrudeWebdataset`)."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from latentkit.contracts import BuildContext, Export, ExportItem, ItemExporter
from latentkit.kit import discover
from latentkit_trainers.plugin import EnergonConfig

VERSION = "7.0.0"
"""Of the library, whose layout of files this is."""


class EnergonExporter:
    """The tar files of the exporter `webdataset`, each with .tar.idx, where its samples begin, and
    .nv-meta, which makes all of them the training split.
    """

    closing_suffix = ".py"

    def __init__(self, config: EnergonConfig) -> None:
        spec = discover().find("exporter", "webdataset").spec
        values = config.model_dump()
        tars: ItemExporter = spec.build(spec.config.model_validate(values), BuildContext())
        self._tars, self.needs = tars, tars.needs
        self.items_per_part = config.rows_per_shard

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a tar file and its index; returns its name and number of samples."""
        some = iter(items)
        first = next(some)
        self._tars.write(itertools.chain([first], some), folder, export)
        name = f"{first.number // self.items_per_part:06d}.tar"
        starts = list_starts(folder / name)
        np.array(starts, "<u8").tofile(folder / f"{name}.idx")
        return [[name, len(starts) - 1]]

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write .nv-meta and latents.json; returns the lines that read the export."""
        self._tars.finish([], folder, export)
        counts = dict(records)
        meta = folder / ".nv-meta"
        meta.mkdir(exist_ok=True)
        said = json.dumps({"energon_version": VERSION, "shard_counts": counts}, indent=1)
        (meta / ".info.json").write_text(said + "\n", encoding="utf-8")
        names = "".join(f"  - {name}\n" for name in counts)
        split = f"split_parts:\n  train:\n{names}  val: []\n  test: []\nexclude: []\n"
        (meta / "split.yaml").write_text(split, encoding="utf-8")
        kind = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
        (meta / "dataset.yaml").write_text(kind, encoding="utf-8")
        path = json.dumps(str(export.folder), ensure_ascii=False)
        return (
            "from megatron.energon import WorkerConfig, get_train_dataset\n\n"
            "# your task encoder needs a Cooker that takes sample['latent.npy'], sample['json']\n"
            f"data = get_train_dataset({path}, task_encoder=YOURS, batch_size=1,\n"
            "    shuffle_buffer_size=100, max_samples_per_sequence=100,\n"
            "    worker_config=WorkerConfig.default_worker_config())"
        )


def list_starts(tar: Path) -> list[int]:
    """Where each sample of a tar file begins, and where the last one ends, in bytes."""
    starts, number, end = list[int](), "", 0
    with tarfile.open(tar) as opened:
        for entry in opened:
            sample = entry.name.partition(".")[0]
            if sample != number:
                starts.append(entry.offset)
                number = sample
            blocks = -(-entry.size // tarfile.BLOCKSIZE)
            end = entry.offset_data + blocks * tarfile.BLOCKSIZE
    return [*starts, end]


build = EnergonExporter

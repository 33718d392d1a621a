"""Exporter `fast-dit`: the features of fast-DiT (its `CustomDataset`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.kit import write_npy
from latentkit_trainers import scales
from latentkit_trainers.plugin import FastDitConfig

FEATURES, LABELS = "imagenet256_features", "imagenet256_labels"


class FastDitExporter:
    """imagenet256_features/00000000.npy, normalized, (1, C, h, w) float32, and the label under the
    same name in imagenet256_labels, (1,) int64; each view of a sample is a sample.
    """

    def __init__(self, config: FastDitConfig) -> None:
        self.needs = ExportNeeds(
            per="row",
            axes="CHW",
            channels=4,
            downscale=8,
            normalization=scales.SD,
            one_size=True,
            square=True,
            label=config.label,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[None]:
        """Write two files per row."""
        for name in (FEATURES, LABELS):
            (folder / name).mkdir(exist_ok=True)
        for item in items:
            file = f"{item.number:08d}.npy"
            write_npy(f"{folder}/{FEATURES}/{file}", item.row.latent[None].numpy())
            write_npy(f"{folder}/{LABELS}/{file}", np.array([item.label], np.int64))
        return []

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Return the options for train.py."""
        size, num_classes = export.buckets[0].split("x")[0], len(export.label_names)
        return f"--feature-path '{export.folder}' --image-size {size} --num-classes {num_classes}"


build = FastDitExporter

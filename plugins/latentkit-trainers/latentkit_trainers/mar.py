"""Exporter `mar`: the cache of MAR and its derivatives (their `CachedFolder`), without loss."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds, ExportRow
from latentkit.kit import write_npz
from latentkit_trainers import scales
from latentkit_trainers.plugin import MarConfig

LONGEST_NAME = 200
"""Bytes of a folder's name; file systems take 255."""


class MarExporter:
    """CLASS/NAME.npz with "moments" and "moments_flip": mean, then log-variance, raw, (2C, h, w)
    float32. The trainer numbers classes by their sorted names.
    """

    def __init__(self, config: MarConfig) -> None:
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain", "hflip"),
            moments=True,
            normalization=scales.MAR,
            one_size=True,
            square=True,
            label=config.label,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[int]:
        """Write a .npz per sample; returns the number of its class."""
        names, labels, made = class_folders(export.label_names), list[int](), set[str]()
        for item in items:
            assert item.label is not None
            above, _, name = f"{names[item.label]}/{item.name}".rpartition("/")
            if above not in made:
                (folder / above).mkdir(parents=True, exist_ok=True)
                made.add(above)
            plain, mirrored = (stack_moments(item.rows[view]) for view in self.needs.views)
            write_npz(f"{folder}/{above}/{name}.npz", {"moments": plain, "moments_flip": mirrored})
            labels.append(item.label)
        return labels

    def finish(self, records: Iterable[int], folder: Path, export: Export) -> str:
        """Return the options for main_mar.py."""
        layout, size = export.layout, export.buckets[0].split("x")[0]
        options = [
            f"--use_cached --cached_path '{export.folder}'",
            f"--img_size {size} --vae_embed_dim {layout.channels} --vae_stride {layout.downscale}",
            f"--class_num {len(set(records))}",
        ]
        return " \\\n".join(options)


def stack_moments(row: ExportRow) -> np.ndarray:
    """Mean, then log-variance, (2C, h, w) float32."""
    moments: np.ndarray = torch.cat([row.mean, row.logvar]).numpy()
    return moments


def class_folders(names: Sequence[str]) -> list[str]:
    """Return a folder's name for each class; sorted, they are in the order of the classes."""
    safe = [re.sub(r"[^\w-]", "_", name) for name in names]
    is_same = all(first < second for first, second in itertools.pairwise(["", *safe]))
    is_short = all(len(name.encode()) <= LONGEST_NAME for name in safe)
    return safe if is_same and is_short else [f"{number:06d}" for number in range(len(names))]


build = MarExporter

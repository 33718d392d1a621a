"""Exporter `repa`: the data of REPA and SiT + REPA (their `CustomDataset`), without loss."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.kit import write_npy
from latentkit_trainers import scales
from latentkit_trainers.pictures import cut_picture
from latentkit_trainers.plugin import RepaConfig


class RepaExporter:
    """vae-sd/00000/img-mean-std-00000000.npy, mean and then standard deviation, raw, (2C, h, w)
    float32; vae-sd/dataset.json with labels; images/00000/img00000000.png in the same order.
    """

    def __init__(self, config: RepaConfig) -> None:
        self._has_pictures = config.pictures
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain",),
            moments=True,
            channels=4,
            downscale=8,
            normalization=scales.SD,
            one_size=True,
            square=True,
            label=config.label,
            media=config.pictures,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a .npy and an image per sample; returns the .npy's name, and the label."""
        records, made = [], set[str]()
        for item in items:
            number = f"{item.number:08d}"
            name = f"{number[:5]}/img-mean-std-{number}.npy"
            if number[:5] not in made:
                for kind in ("vae-sd", *(["images"] if self._has_pictures else [])):
                    (folder / kind / number[:5]).mkdir(parents=True, exist_ok=True)
                made.add(number[:5])
            row = item.rows["plain"]
            moments: np.ndarray = torch.cat([row.mean, (row.logvar / 2).exp()]).numpy()
            write_npy(f"{folder}/vae-sd/{name}", moments)
            if self._has_pictures:
                image = folder / "images" / number[:5] / f"img{number}.png"
                cut_picture(item.media, row).save(image)
            records.append([name, item.label])
        return records

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write vae-sd/dataset.json; returns the options for train.py."""
        text = json.dumps({"labels": list(records)})
        (folder / "vae-sd" / "dataset.json").write_text(text, encoding="utf-8")
        size, num_classes = export.buckets[0].split("x")[0], len(export.label_names)
        options = f"--data-dir '{export.folder}' --resolution {size} --num-classes {num_classes}"
        if self._has_pictures:
            return options
        return f"{options}\n# make images/ with preprocessing/dataset_tools.py convert"


build = RepaExporter

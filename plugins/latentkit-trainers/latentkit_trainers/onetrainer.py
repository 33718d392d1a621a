"""Exporter `onetrainer`: the image cache of OneTrainer (the `DiskCache` of mgds) with the concept
that it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit_trainers.captions import caption_of
from latentkit_trainers.pictures import cut_picture
from latentkit_trainers.plugin import OnetrainerConfig

VARIATIONS = ("plain", "hflip")
"""Views, as variations of the cache, which the trainer takes in turn."""


def image_options() -> dict[str, Any]:
    """The options of a concept's images, all off; they decide the name of its cache."""
    changes = ("brightness", "contrast", "saturation", "hue")
    switches = [
        "crop_jitter",
        "random_flip",
        "fixed_flip",
        "random_rotate",
        "fixed_rotate",
        *(f"{how}_{change}" for change in changes for how in ("random", "fixed")),
        "resolution_override",
        "random_circular_mask_shrink",
        "random_mask_rotate_crop",
    ]
    strengths = {f"random_{change}_max_strength": 0.0 for change in changes}
    return {
        "__version": 0,
        **{f"enable_{name}": False for name in switches},
        **strengths,
        "random_rotate_max_angle": 0.0,
        "resolution_override": "512",
    }


class OnetrainerExporter:
    """data/00000000.png and .txt; cache/image/GROUP/variation-K/N.pt with the raw mean; and
    concepts.json. GROUP is a hash of the concept, whose path is where the export will lie.

    Images are numbered, since the trainer numbers them by their sorted paths.
    """

    closing_suffix = ".json"

    def __init__(self, config: OnetrainerConfig) -> None:
        self._config = config
        self.needs = ExportNeeds(axes="CHW", views=("plain",), media=config.pictures)

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write an image, a caption and a latent of each variation per sample; returns what
        aggregate.pt has of it, and how many variations there are.
        """
        records, group = [], self._group(folder, export)
        (folder / "data").mkdir(exist_ok=True)
        for item in items:
            picture = folder / "data" / f"{item.number:08d}.png"
            caption = caption_of(item, self._config.caption)
            if self._config.pictures:
                cut_picture(item.media, item.row).save(picture)
            else:
                picture.touch()
            picture.with_suffix(".txt").write_text(caption, encoding="utf-8")
            views = [view for view in VARIATIONS if view in item.rows]
            for number, view in enumerate(views):
                row, place = item.rows[view], group / f"variation-{number}"
                place.mkdir(parents=True, exist_ok=True)
                entry = {
                    "latent_image": row.mean,
                    "original_resolution": row.original_size,
                    "crop_offset": tuple((row.geometry.get("crop") or (0, 0))[:2]),
                }
                torch.save(entry, place / f"{item.number}.pt")
            records.append([item.row.size, picture.name, len(views)])
        return records

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write aggregate.pt and concepts.json; returns the settings for the trainer."""
        listed = list(records)
        num_variations = min(count for _, _, count in listed)
        data = export.folder / "data"
        aggregate = [
            {"crop_resolution": tuple(size), "image_path": str(data / name)}
            for size, name, _ in listed
        ]
        for number in range(num_variations):
            place = self._group(folder, export) / f"variation-{number}"
            torch.save(aggregate, place / "aggregate.pt")
        concept = {**self._concept(export), "image_variations": num_variations}
        text = json.dumps([concept], indent=1, ensure_ascii=False)
        (folder / "concepts.json").write_text(text + "\n", encoding="utf-8")
        settings = {
            "concept_file_name": str(export.folder / "concepts.json"),
            "cache_dir": str(export.folder / "cache"),
            "latent_caching": True,
            "clear_cache_before_training": False,
        }
        return json.dumps(settings, indent=4, ensure_ascii=False)

    def _concept(self, export: Export) -> dict[str, Any]:
        return {
            "__version": 2,
            "name": export.folder.name,
            "path": str(export.folder / "data"),
            "seed": self._config.concept_seed,
            "enabled": True,
            "type": "STANDARD",
            "include_subdirectories": False,
            "text_variations": 1,
            "balancing": 1.0,
            "balancing_strategy": "REPEATS",
            "loss_weight": 1.0,
            "image": image_options(),
        }

    def _group(self, folder: Path, export: Export) -> Path:
        """The folder of the concept's latents."""
        concept = self._concept(export)
        names = ("path", "seed", "include_subdirectories", "image")
        text = json.dumps([concept[name] for name in names], sort_keys=True, separators=(",", ":"))
        return folder / "cache" / "image" / hashlib.sha256(text.encode()).hexdigest()


build = OnetrainerExporter

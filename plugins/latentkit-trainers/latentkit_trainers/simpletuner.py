"""Exporter `simpletuner`: the cache of SimpleTuner (its `VAECache`), for models of images."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds, ExportRow
from latentkit.errors import StoreError
from latentkit_trainers.captions import caption_of
from latentkit_trainers.pictures import write_picture
from latentkit_trainers.plugin import SimpleTunerConfig
from latentkit_trainers.pt_files import write_pt

RATIO_DIGITS = 2
"""Of the aspect ratio by which the trainer groups images."""


class SimpleTunerExporter:
    """data/NAME.png and .txt; cache/FOLDER/HASH.pt, a tensor (C, h, w), normalized, where HASH is
    of the name without folder; data/aspect_ratio_bucket_indices_ID.json with the images of each
    aspect ratio, and data/aspect_ratio_bucket_metadata_ID.json with their sizes and crops.
    """

    closing_suffix = ".json"

    def __init__(self, config: SimpleTunerConfig) -> None:
        self._config, self._dtype = config, getattr(torch, config.dtype)
        self.needs = ExportNeeds(axes="CHW", views=("plain",), media=config.pictures)

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write image, caption and latent of each sample; returns its name, metadata, and
        whether it has a caption.

        Raises:
            StoreError: two buckets have one aspect ratio, which the trainer would mix.
        """
        check_ratios(export.buckets)
        records = []
        for item in items:
            row, caption = item.rows["plain"], caption_of(item, self._config.caption)
            picture = folder / "data" / f"{item.name}.png"
            write_picture(item, row, picture, is_blank=not self._config.pictures)
            picture.with_suffix(".txt").write_text(caption, encoding="utf-8")
            name = hashlib.sha256(picture.stem.encode()).hexdigest()
            file = (folder / "cache" / item.name).with_name(f"{name}.pt")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_pt(file, row.latent.to(self._dtype).contiguous())
            records.append([item.name, describe_crop(row), bool(caption)])
        return records

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write the two listings; returns the data backend of the trainer's configuration."""
        data, has_captions = export.folder / "data", False
        ratios, metadata = defaultdict(list), {}
        for name, said, has_caption in records:
            picture = str(data / f"{name}.png")
            metadata[picture] = said
            ratios[str(said["aspect_ratio"])].append(picture)
            has_captions |= has_caption
        indices = {"config": {}, "aspect_ratio_bucket_indices": ratios}
        for kind, listing in (("indices", indices), ("metadata", metadata)):
            file = folder / "data" / f"aspect_ratio_bucket_{kind}_{self._config.id}.json"
            file.write_text(json.dumps(listing, ensure_ascii=False), encoding="utf-8")
        return json.dumps([self._backend(export, has_captions)], indent=1, ensure_ascii=False)

    def _backend(self, export: Export, has_captions: bool) -> dict[str, Any]:
        areas = [math.prod(_sides(bucket)) for bucket in export.buckets]
        return {
            "id": self._config.id,
            "type": "local",
            "instance_data_dir": str(export.folder / "data"),
            "cache_dir_vae": str(export.folder / "cache"),
            "resolution": round(math.sqrt(max(areas))),
            "resolution_type": "pixel_area",
            **(
                {"caption_strategy": "textfile"}
                if has_captions
                else {"caption_strategy": "instanceprompt", "instance_prompt": ""}
            ),
        }


def _sides(bucket: str) -> tuple[int, int]:
    height, width = map(int, bucket.split("x"))
    return height, width


def ratio_of(height: int, width: int) -> float:
    """Return the aspect ratio as the trainer rounds it."""
    return round(width / height, RATIO_DIGITS)


def check_ratios(buckets: Iterable[str]) -> None:
    """Refuse buckets of several sizes and one aspect ratio."""
    found: dict[float, str] = {}
    for bucket in buckets:
        other = found.setdefault(ratio_of(*_sides(bucket)), bucket)
        if other != bucket:
            raise StoreError(
                f"simpletuner takes one size of each aspect ratio, and the buckets {other} and"
                f" {bucket} have the same; encode again with modality.with.buckets.area"
            )


def describe_crop(row: ExportRow) -> dict[str, Any]:
    """Return sizes (width, height) and crop (top, left) of an image, as the trainer lists them:
    it scales an image to the intermediary size and then cuts the target size from it.
    """
    (height, width), (rows, columns) = row.original_size, row.size
    top, left, crop_height, crop_width = row.geometry.get("crop") or (0, 0, height, width)
    down, across = rows / crop_height, columns / crop_width
    return {
        "original_size": [width, height],
        "intermediary_size": [round(width * across), round(height * down)],
        "crop_coordinates": [round(top * down), round(left * across)],
        "target_size": [columns, rows],
        "aspect_ratio": ratio_of(rows, columns),
    }


build = SimpleTunerExporter

"""Exporter `ai-toolkit`: the latent cache of ai-toolkit (its `AiToolkitDataset`)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentkit.contracts import Export, ExportItem, ExportNeeds, ExportRow, Normalization
from latentkit.kit import safe_name
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.pictures import write_picture
from latentkit_trainers.plugin import AiToolkitConfig


@dataclass(frozen=True)
class Family:
    """What the cache of one family of models is like, whose name is the latent space's.

    Args:
        channels, normalization: of its latents.
        size_multiple: what the sides of its buckets are multiples of.
    """

    channels: int
    normalization: Normalization
    size_multiple: int


FAMILIES = {
    "sd1": Family(4, scales.SD, 16),
    "sdxl": Family(4, scales.SDXL, 16),
    "sd3": Family(16, scales.SD3, 32),
    "flux1": Family(16, scales.FLUX, 32),
}


class AiToolkitExporter:
    """NAME.png, NAME.txt and _latent_cache/NAME_HASH.safetensors with "latent", normalized,
    (C, h, w).

    The hash is of the geometry, which the trainer computes from an image's size: one that
    has its bucket's own size is neither scaled nor cropped.
    """

    closing_suffix = ".yaml"

    def __init__(self, config: AiToolkitConfig) -> None:
        self._config, self._dtype = config, getattr(torch, config.dtype)
        family = FAMILIES[config.family]
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain",),
            channels=family.channels,
            downscale=8,
            normalization=family.normalization,
            size_multiple=family.size_multiple,
            media=config.pictures,
        )

    @staticmethod
    def name_of(key: str) -> str:
        """A name without a folder "_controls", which the trainer skips."""
        return re.sub(r"(^|/)_controls(?=/)", r"\1controls", safe_name(key))

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write image, caption and latents of each sample; returns its caption, and whether it
        has a mirror image.
        """
        records = []
        for item in items:
            file, caption = folder / f"{item.name}.png", caption_of(item, self._config.caption)
            write_picture(item, item.rows["plain"], file, is_blank=not self._config.pictures)
            file.with_suffix(".txt").write_text(caption, encoding="utf-8")
            rows = [item.rows[view] for view in ("plain", "hflip") if view in item.rows]
            for row in rows:
                self._write_latent(row, file)
            records.append([caption, len(rows) == 2])
        return records

    def _write_latent(self, row: ExportRow, picture: Path) -> None:
        text = json.dumps(self._describe(row, picture.name), sort_keys=True).encode()
        digest = hashlib.md5(text, usedforsecurity=False).digest()
        end = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        file = picture.parent / "_latent_cache" / f"{picture.stem}_{end}.safetensors"
        file.parent.mkdir(exist_ok=True)
        save_file({"latent": row.latent.to(self._dtype).contiguous()}, file)

    def _describe(self, row: ExportRow, name: str) -> dict[str, Any]:
        """Return what the trainer knows of an image before it decodes it."""
        height, width = row.size
        return {
            "filename": name,
            "scale_to_width": width,
            "scale_to_height": height,
            "crop_x": 0,
            "crop_y": 0,
            "crop_width": width,
            "crop_height": height,
            "latent_space_version": self._config.family,
            "latent_version": 1,
            **({"flip_x": True} if row.view == "hflip" else {}),
        }

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Return the data set of the trainer's configuration."""
        captions, are_mirrored = zip(*records, strict=True)
        areas = [math.prod(map(int, bucket.split("x"))) for bucket in export.buckets]
        return "\n".join(
            [
                *remark_on(captions, self._config.caption),
                "datasets:",
                f"  - folder_path: {json.dumps(str(export.folder))}",
                "    caption_ext: txt",
                "    cache_latents_to_disk: true",
                f"    resolution: [{math.isqrt(max(areas) - 1) + 1}]",
                f"    flip_x: {str(all(are_mirrored)).lower()}",
            ]
        )


build = AiToolkitExporter

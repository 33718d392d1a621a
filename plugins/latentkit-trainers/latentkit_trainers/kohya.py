"""Exporter `kohya`: the cache of sd-scripts (its `FineTuningDataset`), which needs no images."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from latentkit.contracts import Export, ExportItem, ExportNeeds, Normalization
from latentkit.kit import write_npz
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.plugin import KohyaConfig


@dataclass(frozen=True)
class Family:
    """The format of the cache for one family of models.

    Args:
        suffix: of its files.
        channels, downscale, normalization: of its latents.
        size_multiple: what its training scripts demand of `bucket_reso_steps`.
        is_normalized: whether the cache holds normalized latents.
        names_size: whether arrays are named by the latent's size.
    """

    suffix: str
    channels: int
    downscale: int
    normalization: Normalization
    size_multiple: int
    is_normalized: bool = False
    names_size: bool = True


FAMILIES = {
    "sd": Family("sd", 4, 8, scales.SD, 64, names_size=False),
    "sdxl": Family("sdxl", 4, 8, scales.SDXL, 32, names_size=False),
    "sd3": Family("sd3", 16, 8, scales.SD3, 16),
    "flux": Family("flux", 16, 8, scales.FLUX, 16, is_normalized=True),
    "lumina": Family("lumina", 16, 8, scales.FLUX, 16, is_normalized=True),
    "hunyuan-image": Family("hi", 64, 32, scales.HUNYUAN_IMAGE, 32),
    "anima": Family("anima", 16, 8, scales.QWEN_IMAGE, 16, is_normalized=True),
}


class KohyaExporter:
    """A .npz per sample, NAME_WWWWxHHHH_FAMILY.npz, and metadata.json with captions and sizes.

    The trainer finds an image's bucket by the size that metadata.json gives: the bucket's own,
    while `original_size` in the .npz is the image's.
    """

    closing_suffix = ".toml"

    def __init__(self, config: KohyaConfig) -> None:
        self._config, self._family = config, FAMILIES[config.family]
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain",),
            channels=self._family.channels,
            downscale=self._family.downscale,
            normalization=self._family.normalization,
            size_multiple=self._family.size_multiple,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a .npz per sample; returns its entry of metadata.json, and whether it has a mirror
        image.
        """
        records, made = [], set[str]()
        for item in items:
            height, width = item.row.size
            above = item.name.rpartition("/")[0]
            if above not in made:
                (folder / above).mkdir(parents=True, exist_ok=True)
                made.add(above)
            name = f"{item.name}_{width:04d}x{height:04d}_{self._family.suffix}.npz"
            write_npz(f"{folder}/{name}", self._arrays(item))
            entry = {
                "caption": caption_of(item, self._config.caption),
                "image_size": [width, height],
            }
            image = item.name + (PurePosixPath(item.key).suffix or ".png")
            records.append([image, entry, "hflip" in item.rows])
        return records

    def _arrays(self, item: ExportItem) -> dict[str, Any]:
        row, mirrored = item.row, item.rows.get("hflip")
        height, width = row.original_size
        sizes = {
            "original_size": np.array([width, height]),
            "crop_ltrb": np.array(fit_inside((width, height), (row.size[1], row.size[0]))),
        }
        rows = {"latents": row} | ({"latents_flipped": mirrored} if mirrored else {})
        latents = {
            name: (one.latent if self._family.is_normalized else one.raw).numpy()
            for name, one in rows.items()
        }
        end = f"_{row.mean.shape[1]}x{row.mean.shape[2]}" if self._family.names_size else ""
        return {f"{name}{end}": value for name, value in {**latents, **sizes}.items()}

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write metadata.json; returns a dataset configuration."""
        metadata, all_mirrored = {}, True
        for image, entry, is_mirrored in records:
            metadata[image] = entry
            all_mirrored &= is_mirrored
        text = json.dumps(metadata, indent=1, ensure_ascii=False)
        (folder / "metadata.json").write_text(text, encoding="utf-8")
        sizes = [tuple(entry["image_size"]) for entry in metadata.values()]
        captions = (entry["caption"] for entry in metadata.values())
        largest = max(sizes, key=math.prod)
        sides = sorted({side for size in sizes for side in size})
        return "\n".join(
            [
                "# train with --dataset_config THIS --cache_latents --cache_latents_to_disk",
                *remark_on(captions, self._config.caption),
                "[general]",
                "enable_bucket = true",
                "bucket_no_upscale = true",
                f"bucket_reso_steps = {math.gcd(*sides)}",
                f"min_bucket_reso = {sides[0]}",
                f"max_bucket_reso = {sides[-1]}",
                f"flip_aug = {str(all_mirrored).lower()}",
                "",
                "[[datasets]]",
                f"resolution = [{largest[0]}, {largest[1]}]",
                "batch_size = 1",
                "",
                "[[datasets.subsets]]",
                f"metadata_file = {json.dumps(str(export.folder / 'metadata.json'))}",
                f"image_dir = {json.dumps(str(export.folder))}",
                "num_repeats = 1",
            ]
        )


def fit_inside(image: tuple[int, int], bucket: tuple[int, int]) -> list[float]:
    """Return left, top, right and bottom of an image (width, height) that is scaled to fit inside a
    bucket, in its middle.

    The trainer stores these numbers as the crop, and SDXL is conditioned on them.
    """
    ratio = image[0] / image[1]
    is_wider = bucket[0] / bucket[1] > ratio
    width = bucket[1] * ratio if is_wider else float(bucket[0])
    height = float(bucket[1]) if is_wider else bucket[0] / ratio
    left, top = (bucket[0] - width) // 2, (bucket[1] - height) // 2
    return [left, top, left + width, top + height]


build = KohyaExporter

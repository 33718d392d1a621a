"""Exporter `pixart`: the features of PixArt-Sigma (its `InternalDataSigma` and
`InternalDataMSSigma`), without loss but for float16.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.kit import safe_name
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.plugin import PixartConfig


class PixartExporter:
    """InternData/img_sdxl_vae_features_256resolution_new/NAME.npy (_ms_new for several sizes):
    mean and then standard deviation, raw, (2C, h, w) float16; and InternData/data_info.json.

    The trainer finds a picture's bucket by the height and width there, which are the bucket's own.
    """

    closing_suffix = ".py"

    def __init__(self, config: PixartConfig) -> None:
        self._config, side = config, config.resolution
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain",),
            moments=True,
            channels=4,
            downscale=8,
            normalization=scales.SDXL,
            one_size=not config.multi_scale,
            sizes=list_sizes(side) if config.multi_scale else ((side, side),),
        )

    @staticmethod
    def name_of(key: str) -> str:
        """A name without folders, which the trainer's two readers treat differently."""
        return safe_name(key).replace("/", "_")

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a .npy per sample; returns its entry of data_info.json."""
        end = "ms_new" if self._config.multi_scale else "new"
        name = f"img_sdxl_vae_features_{self._config.resolution}resolution_{end}"
        features = folder / "InternData" / name
        features.mkdir(parents=True, exist_ok=True)
        records = []
        for item in items:
            row, caption = item.row, caption_of(item, self._config.caption)
            moments = torch.cat([row.mean, (row.logvar / 2).exp()]).numpy()
            np.save(features / f"{item.name}.npy", moments.astype(np.float16))
            height, width = row.size
            records.append(
                {
                    "path": f"{item.name}.png",
                    "ratio": height / width,
                    "height": height,
                    "width": width,
                    "prompt": caption,
                    "sharegpt4v": caption,
                }
            )
        return records

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write data_info.json; returns the lines for the trainer's configuration."""
        listed = list(records)
        text = json.dumps(listed, indent=1)  # ASCII, as the trainer reads by the system's encoding
        (folder / "InternData" / "data_info.json").write_text(text, encoding="utf-8")
        side, is_multi = self._config.resolution, self._config.multi_scale
        kind = "InternalDataMSSigma" if is_multi else "InternalDataSigma"
        lines = [
            *remark_on((entry["prompt"] for entry in listed), self._config.caption),
            f"data_root = {json.dumps(str(export.folder), ensure_ascii=False)}",
            "image_list_json = ['data_info.json']",
            f"data = dict(type='{kind}', root='InternData', image_list_json=image_list_json,",
            "    transform='default_train', load_vae_feat=True, load_t5_feat=False)",
            f"image_size = {side}",
            f"multi_scale = {is_multi}",
            f"scale_factor = {scales.SDXL.scale}",
        ]
        return "\n".join([*lines, *([f"aspect_ratio_type = 'ASPECT_RATIO_{side}'"] * is_multi)])


def list_sizes(resolution: int) -> tuple[tuple[int, int], ...]:
    """(Height, width) of the trainer's buckets."""
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_alpha, pipeline_pixart_sigma

    name = f"ASPECT_RATIO_{resolution}_BIN"
    module = pipeline_pixart_alpha if resolution < 2048 else pipeline_pixart_sigma
    return tuple((int(height), int(width)) for height, width in getattr(module, name).values())


build = PixartExporter

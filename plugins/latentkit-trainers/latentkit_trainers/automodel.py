"""Exporter `automodel`: the preprocessed data of NeMo AutoModel (its `TextToImageDataset` and
`TextToVideoDataset`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentkit.contracts import Export, ExportItem, ExportNeeds, Normalization
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of
from latentkit_trainers.plugin import AutomodelConfig
from latentkit_trainers.pt_files import write_pt

ITEMS_PER_LISTING = 10_000


@dataclass(frozen=True)
class Model:
    """What the data of one model are like.

    Args:
        channels, normalization: of its latents.
        axes: of its latents, "CTHW" of videos.
        dtype: of latents in the files.
        padding: what becomes of tokens that pad a text: "keep", "drop" or (set to) "zero".
    """

    channels: int
    normalization: Normalization | None = None
    axes: str = "CHW"
    dtype: torch.dtype = torch.float16
    padding: str = "keep"


MODELS = {
    "flux": Model(16, scales.FLUX),
    "flux2": Model(32),
    "qwen-image": Model(16, scales.QWEN_IMAGE, dtype=torch.bfloat16, padding="drop"),
    "wan": Model(16, scales.QWEN_IMAGE, "CTHW", torch.bfloat16, padding="zero"),
}


class AutomodelExporter:
    """WIDTHxHEIGHT/00000000.pt, or .meta of videos, with latent, text embedding and crop; the
    listings metadata.json and metadata_shard_0000.json, with the files' absolute paths.
    """

    closing_suffix = ".yaml"
    items_per_part = ITEMS_PER_LISTING

    def __init__(self, config: AutomodelConfig) -> None:
        self._config, self._model = config, MODELS[config.model]
        self._is_video = self._model.axes == "CTHW"
        self.needs = ExportNeeds(
            axes=self._model.axes,
            views=("plain",),
            channels=self._model.channels,
            normalization=self._model.normalization,
            text=True,
            text_one_length=self._is_video,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a file per sample, and the listing of all; returns its name and its length."""
        listing, number = [], 0
        for item in items:
            number = item.number
            said = self._describe(item)
            end = "meta" if self._is_video else "pt"
            file = Path(said["bucket_id"]) / f"{item.number:08d}.{end}"
            (folder / file).parent.mkdir(exist_ok=True)
            tensors = self._video(item) if self._is_video else self._image(item)
            write_pt(folder / file, {**said, **tensors})
            listing.append({**said, "cache_file": str(export.folder / file)})
        name = f"metadata_shard_{number // ITEMS_PER_LISTING:04d}.json"
        (folder / name).write_text(json.dumps(listing, ensure_ascii=True), encoding="utf-8")
        return [[name, len(listing)]]

    def _describe(self, item: ExportItem) -> dict[str, Any]:
        """Return what stands both in a sample's file and in the listing."""
        (height, width), (full_height, full_width) = item.row.size[-2:], item.row.original_size
        return {
            "prompt": caption_of(item, self._config.caption),
            "image_path": item.key,
            "original_resolution": [full_width, full_height],
            "bucket_resolution": [width, height],
            "bucket_id": f"{width}x{height}",
            "aspect_ratio": width / height,
            "model_type": self._config.model.replace("-", "_"),
        }

    def _image(self, item: ExportItem) -> dict[str, Any]:
        top, left = (item.row.geometry.get("crop") or (0, 0))[:2]
        return {
            "latent": item.row.latent.to(self._model.dtype).contiguous(),
            "crop_offset": [left, top],
            "prompt_embeds": self._embedding(item),
        }

    def _video(self, item: ExportItem) -> dict[str, Any]:
        return {
            "video_latents": item.row.latent[None].to(self._model.dtype).contiguous(),
            "text_embeddings": self._embedding(item),
            "num_frames": item.row.size[0],
            "deterministic_latents": self._config.posterior == "mean",
        }

    def _embedding(self, item: ExportItem) -> Tensor:
        """Return the text's embedding, (1, L, C) bfloat16."""
        assert item.text is not None  # or it was refused
        value, mask = item.text["latent"].T, item.text.get("latent_mask")
        if mask is not None and self._model.padding == "drop":
            value = value[mask]
        elif mask is not None and self._model.padding == "zero":
            value = value * mask[:, None]
        return value[None].bfloat16().contiguous()

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write metadata.json; returns keys of the trainer's configuration."""
        names, counts = zip(*records, strict=True)
        summary = {
            "model_type": self._config.model.replace("-", "_"),
            "total_items": sum(counts),
            "num_shards": len(names),
            "shards": names,
        }
        (folder / "metadata.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
        kind = "video" if self._is_video else "text_to_image"
        loader = f"nemo_automodel.components.datasets.diffusion.build_{kind}_multiresolution"
        return "\n".join(
            [
                "# files are listed by their absolute paths: export again rather than move them",
                "data:",
                "  dataloader:",
                f"    _target_: {loader}_dataloader",
                f"    cache_dir: {json.dumps(str(export.folder))}",
            ]
        )


build = AutomodelExporter

"""Exporter `lightningdit`: the cache of LightningDiT (its `ImgLatentDataset`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit_trainers.plugin import LightningDitConfig


class LightningDitExporter:
    """Shards with "latents" and "latents_flip", raw, (N, C, h, w) float32, and "labels", (N,)
    int64; latents_stats.pt has mean and standard deviation of each channel, by which the trainer
    normalizes.
    """

    closing_suffix = ".yaml"

    def __init__(self, config: LightningDitConfig) -> None:
        self.items_per_part = config.samples_per_shard
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain", "hflip"),
            one_size=True,
            square=True,
            label=config.label,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a shard; returns number, sum and sum of squares of its values by channel."""
        some = list(items)
        plain, mirrored = (
            torch.stack([item.rows[view].raw for item in some]) for view in self.needs.views
        )
        labels = torch.tensor([item.label for item in some], dtype=torch.int64)
        shard = f"latents_{some[0].number // self.items_per_part:06d}.safetensors"
        tensors = {"latents": plain, "latents_flip": mirrored, "labels": labels}
        save_file(tensors, folder / shard)
        wide = plain.double()
        sums = [wide.sum(dim=(0, 2, 3)).tolist(), wide.square().sum(dim=(0, 2, 3)).tolist()]
        return [[wide[:, 0].numel(), *sums]]

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write latents_stats.pt; returns keys of the trainer's configuration."""
        counts, sums, squares = zip(*records, strict=True)
        count = sum(counts)
        mean = torch.tensor(sums, dtype=torch.float64).sum(0) / count
        square = torch.tensor(squares, dtype=torch.float64).sum(0) / count
        variance = (square - mean.square()) * count / (count - 1)
        stats = {"mean": mean, "std": variance.sqrt()}
        shaped = {name: value.float().reshape(1, -1, 1, 1) for name, value in stats.items()}
        torch.save(shaped, folder / "latents_stats.pt")
        layout, size = export.layout, export.buckets[0].split("x")[0]
        return "\n".join(
            [
                "data:",
                f"  data_path: {json.dumps(str(export.folder))}",
                f"  image_size: {size}",
                f"  num_classes: {len(export.label_names)}",
                "  latent_norm: true",
                "  latent_multiplier: 1.0",
                "vae:",
                f"  downsample_ratio: {layout.downscale}",
                "model:",
                f"  in_chans: {layout.channels}",
            ]
        )


build = LightningDitExporter

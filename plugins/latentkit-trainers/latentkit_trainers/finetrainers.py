"""Exporter `finetrainers`: what finetrainers reads with --precomputation_reuse (its
`PrecomputedOnceDataIterable`), without loss up to the type of values.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts import Export, ExportItem, ExportNeeds, ExportRow
from latentkit_trainers.plugin import FinetrainersConfig
from latentkit_trainers.text_embeddings import text_of

FOLDER = "finetrainers-precomputed-data"


@dataclass(frozen=True)
class Model:
    """What the trainer takes of one kind of model.

    Args:
        name: of the trainer's option.
        axes, channels: of latents.
        max_tokens: of text embeddings, filled up with zeros; None: as many as there are.
        mask_name: of the mask of text embeddings; empty: none is taken.
    """

    name: str
    axes: str
    channels: int
    max_tokens: int | None = None
    mask_name: str = ""


MODELS = {
    "cogview4": Model("cogview4", "CHW", 16),
    "wan": Model("wan", "CTHW", 16, max_tokens=512),
    "ltx-video": Model("ltx_video", "CTHW", 128, 128, "encoder_attention_mask"),
}


class FinetrainersExporter:
    """finetrainers-precomputed-data/latent-N.pt with moments (1, 2C, ...), raw, and what else the
    model takes; condition-N.pt with the text embedding.
    """

    def __init__(self, config: FinetrainersConfig) -> None:
        self._config, self._model = config, MODELS[config.model]
        self._dtype = getattr(torch, config.dtype)
        self.needs = ExportNeeds(
            axes=self._model.axes,
            views=("plain",),
            moments=True,
            channels=self._model.channels,
            text=True,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[None]:
        """Write two files per sample."""
        cache, model = folder / FOLDER, self._model
        cache.mkdir(exist_ok=True)
        for item in items:
            embedding, mask = text_of(item, model.max_tokens)
            condition = {"encoder_hidden_states": embedding.to(self._dtype)}
            if model.mask_name:
                condition[model.mask_name] = mask
            torch.save(self._latent(item.row), cache / f"latent-{item.number}.pt")
            torch.save(condition, cache / f"condition-{item.number}.pt")
        return []

    def _latent(self, row: ExportRow) -> dict[str, Any]:
        moments = torch.cat([row.mean, row.logvar])[None].to(self._dtype)
        if self._model.axes == "CHW":
            sizes = {
                "original_size": row.original_size,
                "target_size": row.size[-2:],
                "crop_coords": (0, 0),
            }
            numbers = {name: torch.tensor([size]).to(self._dtype) for name, size in sizes.items()}
            return {"latents": moments, **numbers}
        shift, scale = constants_of(row)
        latent = {"latents": moments, "latents_mean": shift}
        if self._config.model == "wan":  # whose trainer stores 1 / std under this name
            return {**latent, "latents_std": scale}
        frames, height, width = moments.shape[2:]
        return {
            **latent,
            "latents_std": 1 / scale,
            "num_frames": frames,
            "height": height,
            "width": width,
        }

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Return the options for train.py."""
        return (
            f"--model_name {self._model.name} --enable_precomputation --precomputation_once"
            f" --precomputation_reuse --precomputation_dir {shlex.quote(str(export.folder))}"
        )


def constants_of(row: ExportRow) -> tuple[Tensor, Tensor]:
    """Shift and scale of each channel, (C,) float32."""
    shape = (row.layout.channels,)
    shift, scale = (
        np.broadcast_to(np.asarray(value, np.float32).squeeze(), shape)
        for value in (row.normalization.shift, row.normalization.scale)
    )
    return torch.from_numpy(shift.copy()), torch.from_numpy(scale.copy())


build = FinetrainersExporter

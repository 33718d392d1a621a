"""Exporter `diffsynth`: the cache that DiffSynth-Studio trains on with `--task sft:train` (its
`UnifiedDataset` without metadata).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds, Normalization
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of
from latentkit_trainers.plugin import DiffsynthConfig
from latentkit_trainers.text_embeddings import text_of


@dataclass(frozen=True)
class Model:
    """What the trainer's pipeline of one model takes; all have 16 channels.

    Args:
        script: folder of its examples.
        axes, normalization: of latents.
    """

    script: str
    axes: str
    normalization: Normalization


MODELS = {
    "z-image": Model("z_image", "CHW", scales.FLUX),
    "qwen-image": Model("qwen_image", "CHW", scales.QWEN_IMAGE),
    "wan": Model("wanvideo", "CTHW", scales.QWEN_IMAGE),
}
WAN_TOKENS = 512


class DiffsynthExporter:
    """0/00000000.pth: what the pipeline's inputs are after its encoders, shared, positive and
    negative; the latent as "input_latents", normalized, (1, C, ...).
    """

    def __init__(self, config: DiffsynthConfig) -> None:
        self._config, self._model = config, MODELS[config.model]
        self._dtype = getattr(torch, config.dtype)
        self.needs = ExportNeeds(
            axes=self._model.axes,
            views=("plain",),
            channels=16,
            downscale=8 if self._model.axes == "CHW" else None,
            normalization=self._model.normalization,
            size_multiple=16,
            text=True,
        )

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[None]:
        """Write a file per sample."""
        (folder / "0").mkdir(exist_ok=True)
        for item in items:
            inputs: Any = (self._shared(item), self._positive(item), {})
            torch.save(inputs, folder / "0" / f"{item.number:08d}.pth")
        return []

    def _shared(self, item: ExportItem) -> dict[str, Any]:
        latent = item.row.latent[None].to(self._dtype)
        height, width = item.row.size[-2:]
        shared = {
            "input_latents": latent,
            "height": height,
            "width": width,
            "cfg_scale": 1,
            "use_gradient_checkpointing": True,
            "use_gradient_checkpointing_offload": False,
        }
        if self._config.model == "wan":
            shared |= {"num_frames": 4 * (latent.shape[2] - 1) + 1, "cfg_merge": False}
        return shared

    def _positive(self, item: ExportItem) -> dict[str, Any]:
        is_wan = self._config.model == "wan"
        embedding, mask = text_of(item, WAN_TOKENS if is_wan else None)
        embedding = embedding.to(self._dtype)
        prompt = {"prompt": caption_of(item, self._config.caption)}
        if is_wan:
            return {**prompt, "context": embedding}
        if self._config.model == "z-image":
            return {**prompt, "prompt_embeds": [embedding[0]]}
        return {**prompt, "prompt_emb": embedding, "prompt_emb_mask": mask.long()}

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Return the options for the model's train.py."""
        return (
            f"# of examples/{self._model.script}/model_training/train.py\n"
            f"--dataset_base_path {shlex.quote(str(export.folder))} --task sft:train"
        )


build = DiffsynthExporter

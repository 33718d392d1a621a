"""Exporter `ltx`: the precomputed latents of LTX-2's trainer and of LTX-Video-Trainer (their
`PrecomputedDataset`), which need no videos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.kit import safe_name
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.plugin import LtxConfig
from latentkit_trainers.pt_files import write_pt


class LtxExporter:
    """latents/NAME.pt with "latents", normalized, (C, F, h, w), or packed (F h w, C); conditions
    under the same name, from a second dataset, or else captions.jsonl for the trainer's own script.
    """

    closing_suffix = ".yaml"

    def __init__(self, config: LtxConfig) -> None:
        self._config, self._dtype = config, getattr(torch, config.dtype)
        self.needs = ExportNeeds(axes="CTHW", views=("plain",), channels=128, text_one_length=True)

    @staticmethod
    def name_of(key: str) -> str:
        """A name that doesn't begin with "latent_", which the trainer takes for an older format."""
        return re.sub(r"(^|/)latent_(?=[^/]*$)", r"\1latent-", safe_name(key))

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write one file per sample, or two; returns its line of captions.jsonl."""
        lines = []
        for item in items:
            file = f"{item.name}.pt"
            parts = {"latents": self._latents(item)}
            if item.text is not None:
                parts["conditions"] = self._text(item.text)
            for name, tensors in parts.items():
                (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
                write_pt(folder / name / file, tensors)
            caption = caption_of(item, self._config.caption)
            lines.append({"media_path": f"{item.name}.mp4", "caption": caption})
        return lines

    def _latents(self, item: ExportItem) -> dict[str, Any]:
        latents = item.row.latent.to(self._dtype)
        frames, height, width = latents.shape[1:]
        if self._config.packed:
            latents = latents.flatten(1).T
        return {
            "latents": latents.contiguous(),
            "num_frames": frames,
            "height": height,
            "width": width,
            "fps": float(item.row.geometry.get("fps", 1.0)),  # of an image, as the trainer has it
        }

    def _text(self, text: Any) -> dict[str, Any]:
        embedding = text["latent"].T.to(self._dtype).contiguous()
        mask = text.get("latent_mask", torch.ones(len(embedding), dtype=torch.bool))
        return {"prompt_embeds": embedding, "prompt_attention_mask": mask.contiguous()}

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write captions.jsonl; returns keys of the trainer's configuration."""
        captions = []
        with (folder / "captions.jsonl").open("w", encoding="utf-8") as listing:
            for line in records:
                captions.append(line["caption"])
                listing.write(json.dumps(line, ensure_ascii=False) + "\n")
        lines = ["data:", f"  preprocessed_data_root: {json.dumps(str(export.folder))}"]
        if self._config.text:
            return "\n".join(lines)
        script = (
            f"# first: scripts/process_captions.py '{export.folder / 'captions.jsonl'}'"
            f" --output-dir '{export.folder / 'conditions'}'"
        )
        return "\n".join([script, *remark_on(captions, self._config.caption), *lines])


build = LtxExporter

"""Exporter `stable-audio`: pre-encoded audio of stable-audio-tools (its `PreEncodedDataset`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from latentkit.contracts import Export, ExportItem, ExportNeeds
from latentkit.errors import StoreError
from latentkit.kit import write_npy
from latentkit_trainers.captions import caption_of
from latentkit_trainers.plugin import StableAudioConfig

FILES_PER_FOLDER = 10_000


class StableAudioExporter:
    """0000/00000000.npy, raw, (C, L), since the trainer scales by itself, and a .json of the same
    name with what its conditioners ask for; each view of a sample is a sample.
    """

    closing_suffix = ".json"

    def __init__(self, config: StableAudioConfig) -> None:
        self._config, self._dtype = config, getattr(torch, config.dtype)
        self.needs = ExportNeeds(per="row", axes="CL")

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[None]:
        """Write two files per row.

        Raises:
            StoreError: a row isn't said to be some seconds long, as rows of audio are.
        """
        for item in items:
            said = json.dumps(self._describe(item))  # ASCII: the trainer reads it in any locale
            file = folder / f"{item.number // FILES_PER_FOLDER:04d}" / f"{item.number:08d}.npy"
            file.parent.mkdir(exist_ok=True)
            write_npy(file, item.row.raw.to(self._dtype).numpy())
            file.with_suffix(".json").write_text(said, encoding="ascii")
        return []

    def _describe(self, item: ExportItem) -> dict[str, Any]:
        seconds = item.row.seconds
        if seconds is None:
            raise StoreError(
                f"{item.key!r}: stable-audio needs the length in seconds, which only rows of audio"
                " have; export a dataset that was encoded with the modality audio"
            )
        return {
            **item.attributes,
            "key": item.key,
            "view": item.row.view,
            "prompt": caption_of(item, self._config.caption),
            "padding_mask": item.row.padding_mask,
            "seconds_start": 0,
            "seconds_total": math.ceil(seconds),
        }

    def finish(self, records: Iterable[None], folder: Path, export: Export) -> str:
        """Return the trainer's --dataset-config."""
        data = {"id": "latents", "path": str(export.folder)}
        configuration = {"dataset_type": "pre_encoded", "datasets": [data], "random_crop": False}
        return json.dumps(configuration, indent=1, ensure_ascii=False)


build = StableAudioExporter

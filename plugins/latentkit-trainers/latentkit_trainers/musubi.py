"""Exporter `musubi`: the cache of musubi-tuner for models of images (its `ImageDataset`), which
needs no images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentkit.contracts import Export, ExportItem, ExportNeeds, Normalization
from latentkit.kit import safe_name
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.plugin import MusubiConfig


@dataclass(frozen=True)
class Architecture:
    """The format of the cache for one architecture; all contain the posterior's mean.

    Args:
        code: at the end of file names.
        full_name: in the files' headers.
        text_name: of the text embeddings, without dtype.
        script: that computes them from captions.
        channels, normalization: of its latents.
        is_raw: whether the trainer normalizes by itself.
        has_frame_axis: whether latents are (C, 1, h, w).
        names_frame: whether the name of the tensor begins with the number of frames.
    """

    code: str
    full_name: str
    text_name: str
    script: str
    channels: int = 16
    normalization: Normalization | None = None
    is_raw: bool = False
    has_frame_axis: bool = False
    names_frame: bool = True


def _flux2(code: str, name: str) -> Architecture:
    return Architecture(code, name, "ctx_vec", "flux_2", channels=32, names_frame=False)


ARCHITECTURES = {
    "z-image": Architecture(
        "zi", "z_image", "varlen_llm_embed", "zimage", normalization=scales.FLUX, is_raw=True
    ),
    "qwen-image": Architecture(
        "qi",
        "qwen_image",
        "varlen_vl_embed",
        "qwen_image",
        normalization=scales.QWEN_IMAGE,
        has_frame_axis=True,
    ),
    "krea2": Architecture(
        "kr2",
        "krea2",
        "varlen_krea2_vl_embed",
        "krea2",
        normalization=scales.QWEN_IMAGE,
        has_frame_axis=True,
    ),
    "flux2-dev": _flux2("f2d", "flux_2_dev"),
    "flux2-klein-4b": _flux2("f2k4b", "flux_2_klein_4b"),
    "flux2-klein-9b": _flux2("f2k9b", "flux_2_klein_9b"),
}


class MusubiExporter:
    """cache/NAME_WWWWxHHHH_CODE.safetensors, with text embeddings cache/NAME_CODE_te.safetensors
    from a second dataset, or else captions.jsonl for the trainer's own script.

    The trainer finds a bucket by the size in the name, which is the bucket's own.
    """

    closing_suffix = ".toml"

    def __init__(self, config: MusubiConfig) -> None:
        self._config, self._kind = config, ARCHITECTURES[config.architecture]
        self._dtype = getattr(torch, config.dtype)
        self.needs = ExportNeeds(
            axes="CHW",
            views=("plain",),
            channels=self._kind.channels,
            downscale=8,
            normalization=self._kind.normalization,
            size_multiple=16,
        )

    @staticmethod
    def name_of(key: str) -> str:
        """A name without folders, of which the trainer's cache has none."""
        return safe_name(key).replace("/", "_")

    def write(self, items: Iterable[ExportItem], folder: Path, export: Export) -> list[Any]:
        """Write a sample's latent, and its text embedding where there is one; returns its line of
        captions.jsonl.
        """
        kind, lines = self._kind, []
        cache = folder / "cache"
        cache.mkdir(exist_ok=True)
        for item in items:
            # one entry, since the library writes several in an order that changes
            header = {"architecture": kind.full_name}
            rows, columns = item.row.size
            file = cache / f"{item.name}_{columns:04d}x{rows:04d}_{kind.code}.safetensors"
            save_file(self._latents(item), file, header)
            caption = caption_of(item, self._config.caption)
            if item.text is not None:
                text = cache / f"{item.name}_{kind.code}_te.safetensors"
                save_file(self._text(item.text), text, header)
            lines.append({"image_path": f"{item.name}.png", "caption": caption})
        return lines

    def _latents(self, item: ExportItem) -> dict[str, Tensor]:
        value = item.row.mean if self._kind.is_raw else item.row.latent
        name = f"latents_{'1x' if self._kind.names_frame else ''}{value.shape[1]}x{value.shape[2]}"
        value = value.to(self._dtype)
        value = value[:, None] if self._kind.has_frame_axis else value
        return {f"{name}_{self._config.dtype}": value.contiguous()}

    def _text(self, text: Any) -> dict[str, Tensor]:
        """The embedding (L, C); of texts of various lengths the tokens that count."""
        value = text["latent"].T
        if "latent_mask" in text and self._kind.text_name.startswith("varlen"):
            value = value[text["latent_mask"]]
        name = f"{self._kind.text_name}_{self._config.dtype}"
        return {name: value.to(self._dtype).contiguous()}

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write captions.jsonl; returns a dataset configuration."""
        captions = []
        with (folder / "captions.jsonl").open("w", encoding="utf-8") as listing:
            for line in records:
                captions.append(line["caption"])
                listing.write(json.dumps(line, ensure_ascii=False) + "\n")
        sides = [[int(side) for side in bucket.split("x")] for bucket in export.buckets]
        height, width = max(sides, key=lambda size: size[0] * size[1])
        script = f"{self._kind.script}_cache_text_encoder_outputs.py"
        lines = [] if self._config.text else [f"# first: {script} --dataset_config THIS"]
        if not self._config.text:
            lines += remark_on(captions, self._config.caption)
        return "\n".join(
            [
                *lines,
                "[general]",
                f"resolution = [{width}, {height}]",
                "batch_size = 1",
                "enable_bucket = true",
                "bucket_no_upscale = true",
                "",
                "[[datasets]]",
                f"image_jsonl_file = {json.dumps(str(export.folder / 'captions.jsonl'))}",
                f"cache_directory = {json.dumps(str(export.folder / 'cache'))}",
            ]
        )


build = MusubiExporter

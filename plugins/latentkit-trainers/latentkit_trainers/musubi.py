"""Exporter `musubi`: the cache of musubi-tuner for models of images and of videos without image
conditioning (its `ImageDataset` and `VideoDataset`), which needs no images or videos.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentkit.contracts import Export, ExportItem, ExportNeeds, Normalization
from latentkit.errors import StoreError
from latentkit.kit import safe_name
from latentkit_trainers import scales
from latentkit_trainers.captions import caption_of, remark_on
from latentkit_trainers.plugin import MusubiConfig

GLYPHS, GLYPH_CHANNELS = "varlen_byt5_embed", 1472
"""HunyuanVideo 1.5's second text embedding: of what a caption quotes, as text to be drawn."""
QUOTED = re.compile(r'"(.+?)"|“(.+?)”')


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
        is_video: whether latents are (C, F, h, w), of videos.
        has_frame_axis: whether latents of images are (C, 1, h, w).
        names_frame: whether the name of the tensor begins with the number of frames.
    """

    code: str
    full_name: str
    text_name: str
    script: str
    channels: int = 16
    normalization: Normalization | None = None
    is_raw: bool = False
    is_video: bool = False
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
    "wan": Architecture(
        "wan", "wan", "varlen_t5", "wan", normalization=scales.QWEN_IMAGE, is_video=True
    ),
    "hunyuan-video-1.5": Architecture(
        "hv15",
        "hunyuan_video_1_5",
        "varlen_vl_embed",
        "hv_1_5",
        channels=32,
        normalization=scales.HUNYUAN_VIDEO_15,
        is_raw=True,
        is_video=True,
    ),
}


class MusubiExporter:
    """cache/NAME_WWWWxHHHH_CODE.safetensors, with text embeddings cache/NAME_CODE_te.safetensors
    from a second dataset, or else captions.jsonl for the trainer's own script. For videos NAME is
    followed by the first frame and the number of frames: NAME_00000-FFF.

    The trainer finds a bucket by the size in the name, which is the bucket's own.
    """

    closing_suffix = ".toml"

    def __init__(self, config: MusubiConfig) -> None:
        self._config, self._kind = config, ARCHITECTURES[config.architecture]
        self._dtype = getattr(torch, config.dtype)
        self.needs = ExportNeeds(
            axes="CTHW" if self._kind.is_video else "CHW",
            views=("plain",),
            channels=self._kind.channels,
            downscale=None if self._kind.is_video else 8,  # that of videos differs by axis
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
            *frames, rows, columns = item.row.size
            name = f"{item.name}_00000-{frames[0]:03d}" if kind.is_video else item.name
            file = cache / f"{name}_{columns:04d}x{rows:04d}_{kind.code}.safetensors"
            save_file(self._latents(item), file, header)
            caption = caption_of(item, self._config.caption)
            if item.text is not None:
                text = cache / f"{item.name}_{kind.code}_te.safetensors"
                save_file(self._text(item, caption), text, header)
            media = f"{item.name}.mp4" if kind.is_video else f"{item.name}.png"
            lines.append({f"{self._media}_path": media, "caption": caption})
        return lines

    @property
    def _media(self) -> str:
        return "video" if self._kind.is_video else "image"

    def _latents(self, item: ExportItem) -> dict[str, Tensor]:
        value = item.row.mean if self._kind.is_raw else item.row.latent
        is_image = self._kind.names_frame and not self._kind.is_video
        name = "x".join(map(str, ([1] if is_image else []) + [*value.shape[1:]]))
        value = value.to(self._dtype)
        value = value[:, None] if self._kind.has_frame_axis else value
        return {f"latents_{name}_{self._config.dtype}": value.contiguous()}

    def _text(self, item: ExportItem, caption: str) -> dict[str, Tensor]:
        """Return the embedding (L, C); of texts of various lengths the tokens that count.

        Raises:
            StoreError: the model needs an embedding of quoted text too.
        """
        text, kind, dtype = item.text, self._kind, self._config.dtype
        assert text is not None
        value = text["latent"].T
        if "latent_mask" in text and kind.text_name.startswith("varlen"):
            value = value[text["latent_mask"]]
        tensors = {f"{kind.text_name}_{dtype}": value.to(self._dtype).contiguous()}
        if kind.code == "hv15":
            if quoted := QUOTED.search(caption):
                raise StoreError(
                    f"{item.key!r}: its caption quotes {quoted[0]}, for which HunyuanVideo 1.5"
                    " reads an embedding by ByT5 too. Leave the option text out, and run the"
                    " trainer's own text script"
                )
            tensors[f"{GLYPHS}_{dtype}"] = torch.zeros(0, GLYPH_CHANNELS, dtype=self._dtype)
        return tensors

    def finish(self, records: Iterable[Any], folder: Path, export: Export) -> str:
        """Write captions.jsonl; returns a dataset configuration."""
        captions = []
        with (folder / "captions.jsonl").open("w", encoding="utf-8") as listing:
            for line in records:
                captions.append(line["caption"])
                listing.write(json.dumps(line, ensure_ascii=False) + "\n")
        sizes = [[int(side) for side in bucket.split("x")] for bucket in export.buckets]
        height, width = max((size[-2:] for size in sizes), key=lambda size: size[0] * size[1])
        frames = sorted({size[0] for size in sizes}) if self._kind.is_video else []
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
                f"{self._media}_jsonl_file = {json.dumps(str(export.folder / 'captions.jsonl'))}",
                f"cache_directory = {json.dumps(str(export.folder / 'cache'))}",
                *([f"target_frames = {frames}"] if frames else []),
            ]
        )


build = MusubiExporter

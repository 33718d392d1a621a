"""The plugin's declarations. Importing this loads no torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from latentkit.contracts import (
    BuildContext,
    Config,
    DrawConfig,
    ExportConfig,
    ExporterSpec,
    ItemExporter,
    OtherScaleConfig,
    Source,
    SourceSpec,
)
from latentkit.hooks import hookimpl
from latentkit_trainers.caches.options import CacheConfig, KohyaCacheConfig, MdsCacheConfig


class CaptionConfig(Config):
    """The option of an exporter that writes captions."""

    caption: str = Field("text", description="attribute that holds the captions")


class LabelConfig(Config):
    """The option of an exporter for class-conditional training."""

    label: str = Field("label", description="attribute that holds the classes")


class KohyaConfig(DrawConfig, OtherScaleConfig, CaptionConfig):
    """Options of `kohya`."""

    family: Literal["sd", "sdxl", "sd3", "flux", "lumina", "hunyuan-image", "anima"] = Field(
        description=(
            "models to train: each family reads the latents of its own autoencoder; of anima"
            " sd-scripts itself caches the mean: posterior=mean"
        )
    )


class MarConfig(ExportConfig, OtherScaleConfig, LabelConfig):
    """Options of `mar`."""


class RepaConfig(ExportConfig, OtherScaleConfig, LabelConfig):
    """Options of `repa`."""

    pictures: bool = Field(
        True,
        description=(
            "write the images too, which the trainer reads beside the latents, from the dataset's"
            " source; false: make them with the trainer's dataset_tools.py"
        ),
    )


class LightningDitConfig(DrawConfig, LabelConfig):
    """Options of `lightningdit`."""

    samples_per_shard: int = Field(2048, ge=1, description="samples in one file")


class FastDitConfig(DrawConfig, OtherScaleConfig, LabelConfig):
    """Options of `fast-dit`."""


class MusubiConfig(ExportConfig, OtherScaleConfig, CaptionConfig):
    """Options of `musubi`."""

    architecture: Literal[
        "z-image",
        "qwen-image",
        "krea2",
        "flux2-dev",
        "flux2-klein-4b",
        "flux2-klein-9b",
        "wan",
        "hunyuan-video-1.5",
    ] = Field(
        description=(
            "models to train: each reads the latents of its own autoencoder; the last two of"
            " videos, the others of images"
        )
    )
    text: str | None = Field(
        None,
        description=(
            "latent dataset of the captions, by the model's own text encoder; null: captions.jsonl"
            " is for the trainer's own script"
        ),
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of values in the files"
    )


class MdsConfig(DrawConfig, OtherScaleConfig, CaptionConfig):
    """Options of `mds`."""

    preset: Literal["micro-diffusion", "mosaicml"] | None = Field(
        None,
        description=(
            "trainer whose columns to write: micro_diffusion (latents_256 or latents_512,"
            " caption_latents, caption), mosaicml/diffusion (also jpg, from the dataset's source);"
            " null: latent, key, view and all attributes"
        ),
    )
    text: str | None = Field(
        None, description="of a preset: latent dataset of the captions, all of one length"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="of latents without a preset; with one, float16"
    )
    samples_per_shard: int = Field(2048, ge=1, description="rows in one file")


class EnergonConfig(DrawConfig):
    """Options of `energon`."""

    values: Literal["latent", "moments"] = Field(
        "latent",
        description=(
            "latent: normalized as a trainer sees it; moments: mean and logvar as stored, raw"
        ),
    )
    dtype: Literal["float32", "float16"] | None = Field(
        None,
        description="of values in the files; null: float32 for latents, as stored for moments",
    )
    rows_per_shard: int = Field(10_000, ge=1, description="rows in one tar file")


class PixartConfig(ExportConfig, OtherScaleConfig, CaptionConfig):
    """Options of `pixart`."""

    resolution: Literal[256, 512, 1024, 2048] = Field(
        description="side of the squares, or of the square that is as large as each bucket"
    )
    multi_scale: bool = Field(
        False, description="whether images are in the trainer's buckets of this resolution"
    )


class TextConfig(Config):
    """Options of an exporter that writes text embeddings beside latents."""

    text: str | None = Field(
        None, description="latent dataset of the captions, by the model's own text encoder; needed"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of values in the files"
    )


class FinetrainersConfig(ExportConfig, TextConfig):
    """Options of `finetrainers`."""

    model: Literal["cogview4", "wan", "ltx-video"] = Field(
        description="models to train: images for cogview4, videos for the others"
    )


class DiffsynthConfig(ExportConfig, OtherScaleConfig, TextConfig, CaptionConfig):
    """Options of `diffsynth`."""

    model: Literal["z-image", "qwen-image", "wan"] = Field(
        description="models to train: images for the first two, videos for wan"
    )


class OnetrainerConfig(ExportConfig, CaptionConfig):
    """Options of `onetrainer`."""

    pictures: bool = Field(
        True,
        description=(
            "write the images too, from the dataset's source; false: empty files with their"
            " names, which are all that the trainer looks at while its cache is valid"
        ),
    )
    concept_seed: int = Field(0, description="seed of the concept, a part of its cache's name")


class PictureConfig(Config):
    """The option of an exporter whose trainer reads the sizes of images."""

    pictures: bool = Field(
        True,
        description=(
            "write the images, cut to their buckets' sizes, from the dataset's source; false:"
            " black ones, whose sizes are all that the trainer reads of them"
        ),
    )


class LtxConfig(DrawConfig, CaptionConfig):
    """Options of `ltx`."""

    posterior: Literal["draw", "mean"] = Field(
        "mean",
        description=(
            "mean: the posterior's mean, as LTX-2's own script has it; draw: mean + exp(logvar / 2)"
            " * noise, drawn once and frozen in the files, as LTX-Video-Trainer's has it"
        ),
    )
    packed: bool = Field(
        False,
        description="latents as a sequence, (F h w, C), which LTX-Video-Trainer reads; LTX-2 both",
    )
    text: str | None = Field(
        None,
        description=(
            "latent dataset of the captions, all of one length, by the model's own text encoder;"
            " null: captions.jsonl is for the trainer's own script"
        ),
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of values in the files"
    )


class AiToolkitConfig(DrawConfig, OtherScaleConfig, CaptionConfig, PictureConfig):
    """Options of `ai-toolkit`."""

    family: Literal["sd1", "sdxl", "sd3", "flux1"] = Field(
        description="latent space of the models to train"
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of values in the files"
    )


class SimpleTunerConfig(DrawConfig, CaptionConfig, PictureConfig):
    """Options of `simpletuner`."""

    id: str = Field(
        "latents",
        pattern=r"^[\w-]+$",
        description="of the data backend in the trainer's configuration",
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="of values in the files"
    )


class StableAudioConfig(DrawConfig, CaptionConfig):
    """Options of `stable-audio`."""

    dtype: Literal["float32", "float16"] = Field("float32", description="of values in the files")


class AutomodelConfig(DrawConfig, OtherScaleConfig, CaptionConfig):
    """Options of `automodel`."""

    model: Literal["flux", "flux2", "qwen-image", "wan"] = Field(
        description="models to train: wan reads latents of videos, the others of images"
    )
    text: str | None = Field(
        None,
        description="latent dataset of the captions, by the model's own text encoder; necessary",
    )


EXPORTERS: Mapping[str, tuple[str, type[Config]]] = {
    "kohya": ("sd-scripts: .npz and metadata.json, no images needed", KohyaConfig),
    "mar": ("MAR: .npz of moments in a folder for each class", MarConfig),
    "repa": ("REPA, SiT + REPA: .npy of moments, images and dataset.json", RepaConfig),
    "lightningdit": ("LightningDiT: .safetensors and latents_stats.pt", LightningDitConfig),
    "fast-dit": ("fast-DiT: .npy of features and of labels, each view a sample", FastDitConfig),
    "ltx": ("LTX-2, LTX-Video-Trainer: .pt of videos, no videos needed", LtxConfig),
    "ai-toolkit": ("ai-toolkit: .safetensors beside images and captions", AiToolkitConfig),
    "simpletuner": ("SimpleTuner: .pt beside images, and its bucket files", SimpleTunerConfig),
    "stable-audio": ("stable-audio-tools: .npy and .json of audio", StableAudioConfig),
    "automodel": ("NeMo AutoModel: .pt of images or .meta of videos, with texts", AutomodelConfig),
    "mds": ("MosaicML streaming, micro_diffusion: shards with columns by name", MdsConfig),
    "energon": ("Megatron Energon: tar files with .tar.idx and .nv-meta", EnergonConfig),
    "pixart": ("PixArt-Sigma: .npy of moments and data_info.json", PixartConfig),
    "finetrainers": ("finetrainers: .pt of moments and of text embeddings", FinetrainersConfig),
    "diffsynth": ("DiffSynth-Studio: .pth of latents and text embeddings", DiffsynthConfig),
    "onetrainer": ("OneTrainer: a concept of images, and its cache", OnetrainerConfig),
    "musubi": ("musubi-tuner: .safetensors of images or videos, no media needed", MusubiConfig),
}
"""Name, which is also the module's with "_" for "-", to summary and options."""


def _spec(name: str) -> ExporterSpec:
    summary, config = EXPORTERS[name]

    def build(config: Config, context: BuildContext) -> ItemExporter:
        module = importlib.import_module(f"latentkit_trainers.{name.replace('-', '_')}")
        exporter: ItemExporter = module.build(config)
        return exporter

    return ExporterSpec(name, summary, config, build)


@hookimpl
def latentkit_exporters() -> Iterator[ExporterSpec]:
    """An exporter for each trainer."""
    return map(_spec, EXPORTERS)


CACHES: Mapping[str, tuple[str, type[Config]]] = {
    "kohya": ("cache of sd-scripts, for latentkit import", KohyaCacheConfig),
    "mar": ("cache of MAR, for latentkit import", CacheConfig),
    "repa": ("data of REPA, for latentkit import", CacheConfig),
    "lightningdit": ("cache of LightningDiT, for latentkit import", CacheConfig),
    "fast-dit": ("features of fast-DiT, for latentkit import", CacheConfig),
    "mds": ("latents in shards of MosaicML's streaming, for latentkit import", MdsCacheConfig),
}
"""Name, which is also that of a module of `caches`, to summary and options."""


def _cache_spec(name: str) -> SourceSpec:
    summary, config = CACHES[name]

    def build(config: Config, context: BuildContext) -> Source:
        module = importlib.import_module(f"latentkit_trainers.caches.{name.replace('-', '_')}")
        source: Source = module.build(config, context)
        return source

    return SourceSpec(name, summary, config, build, modality="latents")


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    """A source for each cache that can be imported."""
    return map(_cache_spec, CACHES)

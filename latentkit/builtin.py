"""Core's own plugins: config classes and declarations, through the same hooks as everybody's. Loads no torch.

A `build` function imports the module that does the work, and nothing here does any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.builtin_exporters import latentkit_exporters as latentkit_exporters
from latentkit.builtin_losses import latentkit_losses as latentkit_losses
from latentkit.contracts import (
    BuildContext,
    Config,
    EncoderSpec,
    ExecutorSpec,
    InputSpec,
    ModalitySpec,
    SizeRule,
    SourceSpec,
    neutral,
)
from latentkit.hooks import hookimpl

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".mpo", ".png", ".apng", ".webp", ".gif"),
    *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".jp2", ".j2k", ".jpx", ".jpf", ".qoi", ".avif", ".heic", ".heif", ".hif", ".jxl"),
)
PICTURE_PACKAGES = {".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".jxl": "pillow-jxl-plugin"} | {
    ".avif": "pillow>=11.3"
}
"""What reads pictures of these endings, beside Pillow as it is required."""

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Files that the sources take for tables."""

# ---------------------------------------------------------------- sources


class FolderConfig(Config):
    """Source `folder`: files below a folder, sorted by their relative path, which is the key."""

    path: str = Field(description="folder to read, relative to the recipe, or its URL, such as s3://bucket/photos")
    recursive: bool = Field(True, description="look into sub-folders too")
    suffixes: list[str] = Field(list(PICTURE_SUFFIXES), min_length=1, description="endings of the files to take, in any case, with the dot")
    metadata: str | None = Field(
        None,
        description="name of the tables with captions (csv, tsv, jsonl, json, parquet), or path of one; "
        "none: all tables whose rows name files here",
    )

    @field_validator("suffixes")
    @classmethod
    def _dotted(cls, suffixes: list[str]) -> list[str]:
        for suffix in suffixes:
            if not suffix.startswith(".") or len(suffix) < 2:
                raise ValueError(f"write a suffix with its dot, such as '.jpg', not {suffix!r}")
        return suffixes

    @field_validator("metadata")
    @classmethod
    def _known_table(cls, metadata: str | None) -> str | None:
        if metadata is not None and not metadata.lower().endswith(TABLE_ENDINGS):
            raise ValueError(f"must end in {', '.join(TABLE_ENDINGS)}, got {metadata!r}")
        return metadata


class DatasetsConfig(Config):
    """Source `datasets`: anything the library `datasets` opens."""

    path: str | list[str] = Field(
        description="hub id or address of its page, or local: parquet, arrow, csv, json, webdataset tars, a table of paths, image "
        "folder, what save_to_disk wrote; a URL such as s3://bucket/wds of such tables or tars; a pattern of files such as "
        "wds/*.tar or wds/{00000..00012}.tar, or a list of them"
    )
    name: str | None = Field(None, description="configuration of the data set; none: its default")
    split: str = Field("train", description="split, slices such as train[:100] allowed when not streaming")
    revision: str | None = Field(None, description="git revision on the hub; none: the newest")
    media: str | None = Field(None, description="column that holds the media; none: the only image, audio, video or bytes column")
    attributes: list[str] | None = Field(
        None, description="columns to keep as attributes; none: every other column of numbers, texts, labels or lists of them"
    )
    key: str | None = Field(None, description="column that names each sample; none: its position (map-style), or its file (webdataset)")
    streaming: bool = Field(False, description="read shard by shard without downloading all of it first")


class SamplePhotosConfig(Config):
    """Source `sample-photos`: the photographs inside the scikit-image package."""


# ---------------------------------------------------------------- modality image


class BucketsConfig(Config):
    """Aspect-ratio buckets: each picture is prepared to the bucket whose aspect is nearest to its own."""

    area: int | None = Field(None, gt=0, description="pixels of a bucket, at most (height x width); or give shapes")
    shapes: list[tuple[int, int]] | Literal["sdxl"] | None = Field(
        None, description="the buckets themselves, [height, width] each, or sdxl: the 40 that SDXL was trained on; or give area"
    )
    step: int = Field(64, gt=0, description="heights and widths are multiples of this, in pixels")
    min: int | None = Field(None, gt=0, description="shortest side allowed, in pixels; none: half the side of the square")
    max: int | None = Field(None, gt=0, description="longest side allowed, in pixels; none: twice the side of the square")
    aspect: float = Field(2.0, ge=1.0, description="longest over shortest side, at most")

    @field_validator("shapes")
    @classmethod
    def _one_order(cls, shapes: list[tuple[int, int]] | Literal["sdxl"] | None) -> list[tuple[int, int]] | None:
        """One way to write a list, so that every order of it has one fingerprint."""
        from latentkit.modalities.geometry import SDXL_SHAPES

        if shapes is None:
            return None
        listed = list(SDXL_SHAPES) if shapes == "sdxl" else sorted(shapes)
        if not listed or min(map(min, listed)) < 1:
            raise ValueError("list at least one shape, [height, width], each side at least 1 pixel")
        if len(set(listed)) < len(listed):
            raise ValueError("a shape is listed twice")
        return listed

    @model_validator(mode="after")
    def _some_shape_fits(self) -> Self:
        from latentkit.modalities.geometry import bucket_shapes

        if (self.area is None) == (self.shapes is None):
            raise ValueError("give area (shapes are computed) or shapes (listed by hand), one of them")
        if self.area is None:
            idle = sorted({"step", "min", "max", "aspect"} & self.model_fields_set)
            if idle:
                raise ValueError(f"{', '.join(idle)}: has no effect on shapes that are listed")
        elif not bucket_shapes(self.area, self.step, self.min, self.max, self.aspect):
            raise ValueError("no shape fits: lower step or min, or raise area or max")
        return self


VIEW_HELP = "plain, hflip, crop-1, crop-2 ... (further random crops), hflip-1 ... (their mirror images)"


class FramingConfig(Config):
    """Which part of a picture is kept, and at which size; of `image`, and of other modalities that show pictures."""

    size: int | tuple[int, int] = Field(
        256, description="side in pixels, or [height, width]; the picture is scaled to cover it, then cropped"
    )
    buckets: BucketsConfig | None = Field(None, description="aspect-ratio buckets instead of one size")
    crop: Literal["center", "random", "none"] = Field(
        "center", description="which part is kept: the middle, a draw from seed and key, or (none) all of it, squeezed to the size"
    )
    crop_scale: tuple[float, float] = Field(
        (1.0, 1.0), description="side of a random crop over that of the largest that fits: drawn between these two, above 0 and at most 1"
    )
    views: list[str] = Field(["plain"], min_length=1, description=VIEW_HELP)
    min_size: Annotated[int, Field(ge=1)] | Literal["target"] = Field(
        8, description="shortest side in pixels that is not small; target: what would be enlarged to its size or bucket is small"
    )
    on_small: Literal["skip", "upscale", "fail"] = Field("skip", description="what happens to a picture below min_size")

    @field_validator("buckets", mode="before")
    @classmethod
    def _named_buckets(cls, buckets: Any) -> Any:
        return {"shapes": buckets} if isinstance(buckets, str) else buckets

    @field_validator("size")
    @classmethod
    def _positive(cls, size: int | tuple[int, int]) -> int | tuple[int, int]:
        if min((size,) if isinstance(size, int) else size) < 1:
            raise ValueError("must be at least 1 pixel")
        # One way to write a square, so that both have one fingerprint.
        return size[0] if isinstance(size, tuple) and size[0] == size[1] else size

    @field_validator("crop_scale")
    @classmethod
    def _growing_shares(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("must be two numbers above 0 and at most 1, the smaller one first")
        return scale

    @field_validator("views")
    @classmethod
    def _known_views(cls, views: list[str]) -> list[str]:
        for view in views:
            stem, _, number = view.partition("-")
            if not (view in ("plain", "hflip") or (stem in ("crop", "hflip") and number.isdigit() and int(number) >= 1)):
                raise ValueError(f"unknown view {view!r}; known: {VIEW_HELP}")
        if len(set(views)) < len(views):
            raise ValueError("a view is listed twice")
        return views

    @model_validator(mode="after")
    def _size_or_buckets(self) -> Self:
        if self.buckets is not None and "size" in self.model_fields_set:
            raise ValueError("give size or buckets, not both")
        return self

    def fitted(self, spec: InputSpec) -> dict[str, Any]:
        """Options left at a default that the encoder doesn't take, with the nearest it does."""
        if self.buckets is not None or "size" in self.model_fields_set:
            return {}
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        nearest = [
            spec.sizes.get(axis, SizeRule()).nearest(size)
            for axis, size in zip("HW", (height, width), strict=True)
        ]
        size = nearest[0] if nearest[0] == nearest[1] else nearest
        return {} if nearest == [height, width] else {"size": size}


class ImageConfig(FramingConfig):
    """Modality `image`."""

    background: tuple[int, int, int] = Field((255, 255, 255), description="red, green, blue from 0 to 255 behind transparent parts")
    resize: Literal["pillow", "lanczos", "draft"] = Field(
        "pillow",
        description="pillow: its Lanczos filter; lanczos: the same filter, nearer to the ideal and twice as fast; draft: like lanczos, but "
        "of JPEGs decoded at a half, quarter or eighth of their size, at least twice the pixels needed",
    )
    max_pixels: int = neutral(
        178_956_970, gt=0, description="pictures with more pixels are refused before they are decoded (decompression bombs)"
    )

    @field_validator("background")
    @classmethod
    def _byte_colours(cls, colour: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= part <= 255 for part in colour):
            raise ValueError("red, green and blue must be from 0 to 255")
        return colour


# ---------------------------------------------------------------- encoders

Precision = Literal["float32", "bfloat16", "float16"]


class DiffusersConfig(Config):
    """Encoder `diffusers`."""

    model: str | None = neutral(
        None, description="folder, single file (.safetensors, or .ckpt, .pt, .pth, .bin), or hub id of the autoencoder, "
        "with a path behind it or not, or the address of its page"
    )
    config: str | None = neutral(
        None,
        description="name of a published autoencoder such as sdxl, or a config.json: alone, of random weights to train; with model, of it",
    )
    subfolder: str | None = neutral(None, description="folder inside the model's, such as vae; none: the one that takes the modality")
    revision: str | None = neutral(None, description="git revision on the hub; none: the newest")
    variant: str | None = neutral(
        None, description="which weights of several, such as fp16 (by the file's name) or ema (by the name within a checkpoint)"
    )
    dtype: Precision = Field("float32", description="the network computes in this")
    tiling: bool = Field(False, description="encode large inputs in overlapping tiles (changes their latents)")
    indices: bool | None = Field(
        None, description="store indices into the codebook (true) or continuous latents (false); none: indices for VidTok fsq only"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.model is None and self.config is None:
            raise ValueError("give model (weights to load) or config (random weights, for training)")
        return self


class TinyKLConfig(Config):
    """Encoders `tiny-kl` and `tiny-kl-16`."""

    model: str | None = neutral(None, description="folder that training wrote; none: the weights inside the package")
    init: Literal["weights", "random"] = neutral(
        "weights", description="start from those weights, or from random ones drawn from the seed, for training from scratch"
    )
    dtype: Precision = Field("float32", description="the network computes in this")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if self.model is not None and self.init == "random":
            raise ValueError("give model (weights to load) or init: random, not both")
        return self


# ---------------------------------------------------------------- executors


class LocalConfig(Config):
    """Executor `local`."""

    device: str = neutral(
        "auto", description="auto (all accelerators, a process each, or the CPU), a kind such as cuda, or one device such as cuda:1"
    )
    devices: list[str] | None = neutral(None, description="several, a process each, such as [cuda:0, cuda:1]; none: as device says")

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.devices is not None and (not self.devices or self.device != "auto"):
            raise ValueError("give device or devices, and at least one")
        return self


class AccelerateConfig(Config):
    """Executor `accelerate`."""


# ---------------------------------------------------------------- declarations


def _build_folder(config: FolderConfig, context: BuildContext) -> Any:
    from latentkit.sources.folder import FolderSource

    return FolderSource(config, context)


def _build_datasets(config: DatasetsConfig, context: BuildContext) -> Any:
    from latentkit.sources.datasets import open_datasets

    return open_datasets(config, context)


def _build_sample_photos(config: SamplePhotosConfig, context: BuildContext) -> Any:
    from latentkit.sources.sample_photos import open_sample_photos

    return open_sample_photos()


def _build_image(config: ImageConfig, context: BuildContext) -> Any:
    from latentkit.modalities.image import ImageModality

    return ImageModality(config, context)


def _build_diffusers(config: DiffusersConfig, context: BuildContext) -> Any:
    from latentkit.encoders.diffusers import open_diffusers

    return open_diffusers(config, context)


def _build_tiny_kl(config: TinyKLConfig, context: BuildContext) -> Any:
    from latentkit.encoders.tiny_kl import open_tiny_kl

    return open_tiny_kl(config, context)


def _build_tiny_kl_16(config: TinyKLConfig, context: BuildContext) -> Any:
    from latentkit.encoders.tiny_kl import open_tiny_kl

    return open_tiny_kl(config, context, "tiny-kl-16")


def _build_local(config: LocalConfig, context: BuildContext) -> Any:
    from latentkit.executors.local import LocalExecutor
    from latentkit.runtime.device import choose_device, list_devices

    if config.devices is not None:
        return LocalExecutor(*map(choose_device, config.devices))
    # Of a launcher's processes each has a device of its own; `--cpu` leaves "auto" the CPU.
    is_sole = config.device == "auto" and context.device in list_devices() and "LOCAL_RANK" not in os.environ
    return LocalExecutor(*list_devices() if is_sole else [context.device])


def _build_accelerate(config: AccelerateConfig, context: BuildContext) -> Any:
    from latentkit.executors.accelerate import AccelerateExecutor

    return AccelerateExecutor(context.device)


@hookimpl
def latentkit_sources() -> Iterator[SourceSpec]:
    yield SourceSpec("folder", "files below a folder, with captions", FolderConfig, _build_folder)
    yield SourceSpec("datasets", "anything the library datasets opens", DatasetsConfig, _build_datasets)
    yield SourceSpec("sample-photos", "photographs inside scikit-image", SamplePhotosConfig, _build_sample_photos)


@hookimpl
def latentkit_modalities() -> Iterator[ModalitySpec]:
    # Version 2: the white and the colors of formats that Pillow reads otherwise; before, such files came out wrong.
    yield ModalitySpec("image", "pictures, in sRGB", ImageConfig, _build_image, version=2, suffixes=PICTURE_SUFFIXES)


@hookimpl
def latentkit_encoders() -> Iterator[EncoderSpec]:
    yield EncoderSpec("diffusers", "a diffusers autoencoder", DiffusersConfig, _build_diffusers)
    yield EncoderSpec("tiny-kl", "small KL autoencoder inside latentkit (f8, 4 channels)", TinyKLConfig, _build_tiny_kl)
    yield EncoderSpec("tiny-kl-16", "the same with 16 channels: sharper, harder to model", TinyKLConfig, _build_tiny_kl_16)


@hookimpl
def latentkit_executors() -> Iterator[ExecutorSpec]:
    yield ExecutorSpec("local", "this machine, a process for each device", LocalConfig, _build_local)
    yield ExecutorSpec("accelerate", "every process of an accelerate launch", AccelerateConfig, _build_accelerate)

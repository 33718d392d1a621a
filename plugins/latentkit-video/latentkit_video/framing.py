"""Size, crop and views of a clip: the options and the arithmetic of the modality `image`. Importing this loads no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.builtin import VIEW_HELP, BucketsConfig
from latentkit.contracts import Config, InputSpec, SizeRule
from latentkit.errors import RecipeError
from latentkit.modalities.geometry import Box, Shape, bucket_shapes, crop_box, draw_fractions, nearest_allowed, whole


class FramingConfig(Config):
    """Which part of a picture is kept, and at which size."""

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
    min_size: int = Field(8, ge=1, description="shortest side in pixels that is not small")
    on_small: Literal["skip", "upscale", "fail"] = Field("skip", description="what happens to a film below min_size")

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


def target_shapes(config: FramingConfig) -> list[Shape]:
    """The shapes that clips are prepared to."""
    if config.buckets is None:
        return [(config.size, config.size) if isinstance(config.size, int) else config.size]
    buckets = config.buckets
    return bucket_shapes(buckets.area, buckets.step, buckets.min, buckets.max, buckets.aspect)


def check_sizes(config: FramingConfig, frames: int, spec: InputSpec) -> None:
    """Nothing, where the encoder takes clips of that many frames in every one of the shapes.

    Raises:
        RecipeError: it doesn't; names the sizes next to them.
    """
    _check("modality.with.frames", "a number of frames", frames, spec.sizes.get("T"))
    where = "modality.with.size" if config.buckets is None else "modality.with.buckets"
    for shape in target_shapes(config):
        for axis, name, size in zip("HW", ("a height", "a width"), shape, strict=True):
            _check(where, name, size, spec.sizes.get(axis))


def _check(where: str, name: str, size: int, rule: SizeRule | None) -> None:
    if rule is not None and not rule.allows(size):
        near = " and ".join(str(other) for other in nearest_allowed(size, rule))
        raise RecipeError(f"{where}: {size} is not {name} that the encoder takes: {rule}; nearest: {near}")


def unflipped(view: str) -> str:
    """The view that a mirrored one mirrors: "plain" of "hflip", "crop-2" of "hflip-2"; any other view is its own."""
    return "plain" if view == "hflip" else view.replace("hflip-", "crop-")


def view_box(config: FramingConfig, seed: int, key: str, view: str, picture: Shape, shape: Shape) -> Box:
    """The part of an upright picture that a view shows, before it is mirrored."""
    if view == "plain" and config.crop == "none":
        return whole(picture)
    if view == "plain" and config.crop == "center":
        return crop_box(picture, shape)
    across, down, zoom = draw_fractions(seed, key, view, 3)
    smallest, largest = config.crop_scale
    return crop_box(picture, shape, across, down, smallest + (largest - smallest) * zoom)

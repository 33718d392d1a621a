"""Options of the modality `image`, and of the framing that other modalities share.

Loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from latentkit.contracts import (
    Config,
    InputSpec,
    SizeRule,
    neutral,
)

# ---------------------------------------------------------------- modality image


class BucketsConfig(Config):
    """Aspect-ratio buckets: each image is prepared to the bucket whose aspect ratio is nearest to
    its own.
    """

    area: int | None = Field(
        None, gt=0, description="most pixels of a bucket (height x width); or give shapes"
    )
    shapes: list[tuple[int, int]] | Literal["sdxl"] | None = Field(
        None,
        description=(
            "the buckets themselves, [height, width] each, or sdxl: the 40 that SDXL was trained"
            " on; or give area"
        ),
    )
    step: int = Field(64, gt=0, description="heights and widths are multiples of this, in pixels")
    min: int | None = Field(
        None,
        gt=0,
        description="shortest side allowed, in pixels; none: half the side of the square",
    )
    max: int | None = Field(
        None,
        gt=0,
        description="longest side allowed, in pixels; none: twice the side of the square",
    )
    aspect: float = Field(
        2.0, ge=1.0, description="largest ratio of the longest to the shortest side"
    )

    @field_validator("shapes")
    @classmethod
    def _one_order(
        cls, shapes: list[tuple[int, int]] | Literal["sdxl"] | None
    ) -> list[tuple[int, int]] | None:
        """Sort the shapes, so that every order has the same fingerprint."""
        from latentkit.modalities.buckets import SDXL_SHAPES

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
        from latentkit.modalities.buckets import bucket_shapes

        if (self.area is None) == (self.shapes is None):
            raise ValueError(
                "give area (shapes are computed) or shapes (listed by hand), one of them"
            )
        if self.area is None:
            idle = sorted({"step", "min", "max", "aspect"} & self.model_fields_set)
            if idle:
                raise ValueError(
                    f"{', '.join(idle)}: no effect where `shapes` is a list; leave it out, or give"
                    " area instead of shapes"
                )
        elif not bucket_shapes(self.area, self.step, self.min, self.max, self.aspect):
            raise ValueError("no shape fits: lower step or min, or raise area or max")
        return self


VIEW_HELP = (
    "plain, hflip, crop-1, crop-2 ... (further random crops), hflip-1 ... (their mirror images)"
)


class FramingConfig(Config):
    """Which part of an image is kept, and at which size. Other modalities that show images share
    these options.
    """

    size: int | tuple[int, int] = Field(
        256,
        description=(
            "side in pixels, or [height, width]; the image is scaled to cover it, then cropped"
        ),
    )
    buckets: BucketsConfig | None = Field(
        None, description="aspect-ratio buckets instead of one size"
    )
    crop: Literal["center", "random", "none"] = Field(
        "center",
        description=(
            "which part is kept: the center, a random one (from seed and key), or none: the whole"
            " image is squeezed to the size"
        ),
    )
    crop_scale: tuple[float, float] = Field(
        (1.0, 1.0),
        description=(
            "range of a random crop's side, relative to the largest crop that fits; above 0 and at"
            " most 1"
        ),
    )
    views: list[str] = Field(["plain"], min_length=1, description=VIEW_HELP)
    min_size: Annotated[int, Field(ge=1)] | Literal["target"] = Field(
        8,
        description=(
            "minimum shorter side in pixels; smaller images follow on_small; target: those that"
            " would be enlarged to their size or bucket"
        ),
    )
    on_small: Literal["skip", "upscale", "fail"] = Field(
        "skip", description="what happens to an image below min_size"
    )

    @field_validator("buckets", mode="before")
    @classmethod
    def _named_buckets(cls, buckets: Any) -> Any:
        """Accept a text as the name of shapes, and lists as tuples."""
        if isinstance(buckets, str):
            return {"shapes": buckets}
        # Behind a validator of this mode pydantic is strict as with Python's own values, of which
        # a list is no tuple; a recipe has lists alone.
        if isinstance(buckets, dict) and isinstance(buckets.get("shapes"), list):
            shapes = [tuple(one) if isinstance(one, list) else one for one in buckets["shapes"]]
            return {**buckets, "shapes": shapes}
        return buckets

    @field_validator("size")
    @classmethod
    def _positive(cls, size: int | tuple[int, int]) -> int | tuple[int, int]:
        if min((size,) if isinstance(size, int) else size) < 1:
            raise ValueError("must be at least 1 pixel")
        # A square is written in one way, so that both ways have the same fingerprint.
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
            if not (
                view in ("plain", "hflip")
                or (stem in ("crop", "hflip") and number.isdigit() and int(number) >= 1)
            ):
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
        """Return options left at a default that the encoder doesn't accept, with the nearest value
        it does.
        """
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
    """Options of the modality `image`."""

    background: tuple[int, int, int] = Field(
        (255, 255, 255), description="red, green, blue from 0 to 255 behind transparent parts"
    )
    resize: Literal["pillow", "lanczos", "draft"] = Field(
        "pillow",
        description=(
            "lanczos: a Lanczos filter, the choice for new latent datasets if the recipe doesn't"
            " set resize; pillow: Pillow's Lanczos filter, slower and less exact; draft: like"
            " lanczos, but JPEGs are decoded at a half, quarter or eighth of their size, with at"
            " least twice the needed pixels"
        ),
        json_schema_extra={"versions": {"lanczos": 2, "draft": 2}},  # before: sums were rounded
    )
    max_pixels: int = neutral(
        178_956_970,
        gt=0,
        description=(
            "images with more pixels are refused before they are decoded (decompression bombs)"
        ),
    )

    def for_new_dataset(self) -> dict[str, Any]:
        """Return the values of open options for a new latent dataset. The defaults stay those of
        older datasets, which were started before there was a better choice.
        """
        return {} if "resize" in self.model_fields_set else {"resize": "lanczos"}

    @field_validator("background")
    @classmethod
    def _byte_colors(cls, color: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(0 <= part <= 255 for part in color):
            raise ValueError("red, green and blue must be from 0 to 255")
        return color


class LatentsConfig(Config):
    """Options of the modality `latents`; `latentkit import` sets them."""

    views: tuple[str, ...] = Field(
        ("plain",), min_length=1, description="views that every sample has, such as plain, hflip"
    )
    downscale: int | tuple[int | float, ...] | None = Field(
        None,
        description=(
            "input size over latent size, by which buckets are named: one number, or one for each"
            " axis but C; null: unknown, named by the latents' own size"
        ),
    )

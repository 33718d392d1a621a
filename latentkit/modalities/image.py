"""Modality `image`: picture files to tensors of one shape per bucket, and tensors to a contact
sheet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from latentkit.contracts import BuildContext, InputSpec, Prepared, RowMemory, Sample
from latentkit.errors import RecipeError
from latentkit.modalities.buckets import nearest_shape
from latentkit.modalities.decode_image import (
    decode_levels,
    decode_picture,
    frame_remarks,
    open_picture,
    shrink_on_load,
    upright_shape,
)
from latentkit.modalities.framing import (
    check_small,
    enlarged_remarks,
    target_shapes,
    unflipped,
    view_box,
)
from latentkit.modalities.geometry import Box, Shape, Shrink, nearest_allowed
from latentkit.modalities.image_formats import known_formats
from latentkit.modalities.resizing import Levels, Resizer
from latentkit.runtime.buffers import BufferPool
from latentkit.runtime.memory import refuse_beyond_memory

if TYPE_CHECKING:
    from torch import Tensor

    from latentkit.modalities.options import ImageConfig

MODES = {1: "L", 3: "RGB", 4: "RGBA"}

SHEET_GAP_PIXELS = 4
SHEET_COLOR = (255, 255, 255)


class ImageModality:
    """Pictures as (C, H, W) float32 in the encoder's range, in sRGB; C is 3, or 1 (luma) or 4 (with
    alpha) where the encoder takes that.

    Args:
        config: size or buckets, crop and views.
        context: seed of the random crops, and what the encoder takes.

    Raises:
        RecipeError: channels or sizes that the encoder does not take; names the sizes next to them.
    """

    metrics: Sequence[str] = ("psnr", "ssim", "ms-ssim", "rfid")
    ignores_sizes = True

    def __init__(self, config: ImageConfig, context: BuildContext) -> None:
        self._config = config
        self._seed = context.seed
        self._input = context.input or InputSpec(channels=3)
        if self._input.channels not in MODES:
            raise RecipeError(
                "modality image makes 1, 3 or 4 channels, but the encoder takes"
                f" {self._input.channels}"
            )
        self._shapes = _allowed_shapes(config, self._input)
        where = "modality.with.size" if config.buckets is None else "modality.with.buckets"
        refuse_beyond_memory(where, (self._input.channels, *max(self._shapes, key=math.prod)))
        self._formats = known_formats()
        self._buffers = BufferPool(pinned=False)

    def prepare(self, sample: Sample, memory: RowMemory | None = None) -> Iterator[Prepared]:
        """Every view of a picture, in the recipe's order: (C, H, W) float32 in the encoder's range,
        from one decode.

        Raises:
            SampleError: not a picture, broken, too large, or too small under `on_small: skip`.
            SourceError: too small under `on_small: fail`.
            OSError: the media can't be reached.
        """
        memory = memory or self._buffers
        media = sample.read()
        picture = open_picture(media, self._formats, self._config.max_pixels)
        if self._config.min_size != "target":
            check_small(self._config, sample.key, (picture.height, picture.width))
        frames = frame_remarks(picture)
        shrink = Shrink()
        if self._config.resize == "draft":
            original = upright_shape(picture)
            shrink = shrink_on_load(picture, self._cut(sample.key, original)[1])
        resizer = Resizer(self._decode(picture, media), shrink, self._buffers)
        if shrink.divisor == 1:
            original = resizer.shape
        if self._config.min_size == "target":
            check_small(self._config, sample.key, original)
        for prepared in self._views(sample.key, resizer, original, memory):
            yield replace(prepared, remarks=[*prepared.remarks, *frames])

    def _decode(self, picture: Image.Image, media: bytes) -> Image.Image | Levels:
        mode, background = MODES[self._input.channels], self._config.background
        if self._config.resize == "pillow":
            return decode_picture(picture, mode, background)
        return decode_levels(picture, media, mode, background, self._buffers)

    def _cut(self, key: str, original: Shape) -> tuple[dict[str, Box], float]:
        """Return each crop's box, and the fewest pixels that a pixel of the result covers."""
        shape = nearest_shape(self._shapes, original)
        crops = dict.fromkeys(unflipped(view) for view in self._config.views)
        boxes = {
            crop: view_box(self._config, self._seed, key, crop, original, shape) for crop in crops
        }
        return boxes, min(
            min(box.height / shape[0], box.width / shape[1]) for box in boxes.values()
        )

    def _views(
        self, key: str, resizer: Resizer, original: Shape, memory: RowMemory
    ) -> Iterator[Prepared]:
        shape = nearest_shape(self._shapes, original)
        boxes, _ = self._cut(key, original)
        resized: dict[str, Levels] = {}
        for view in self._config.views:
            crop = unflipped(view)
            box = boxes[crop]
            if crop not in resized:
                resized[crop] = resizer.resize(box, shape)
            levels = resized[crop] if view == crop else resized[crop][..., ::-1]
            geometry = {
                "height": original[0],
                "width": original[1],
                "crop": box.rounded(),
                "flip": view != crop,
            }
            bucket, remarks = f"{shape[0]}x{shape[1]}", enlarged_remarks(box, shape)
            tensor = self._to_tensor(levels, memory.get(levels.shape, np.float32))
            yield Prepared(view, bucket, tensor, geometry, remarks)

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write a PNG with a row of images per inner sequence; parent folders are made.

        Args:
            tensors: (C, H, W) each, C of 1, 3 or 4, any float dtype and device, in the encoder's
                range; what lies outside is clipped.

        Raises:
            ValueError: no tensor at all, or one of another shape.
        """
        rows = [
            [_to_picture(tensor, self._input.range) for tensor in row]
            for row in tensors
            if len(row)
        ]
        if not rows:
            raise ValueError("render needs at least one tensor, got none")
        path.parent.mkdir(parents=True, exist_ok=True)
        _contact_sheet(rows).save(path, format="PNG")

    def _to_tensor(self, levels: Levels, values: npt.NDArray[np.float32]) -> Tensor:
        """(C, H, W) float32 of levels, in `values`: 0 is the lower limit of the encoder's range,
        255 the upper one, both exactly.
        """
        low, high = self._input.range
        # Divided rather than multiplied by the inverse, which is not a float: 255 would miss the
        # limit.
        np.divide(levels, np.float32(255 / (high - low)), out=values, dtype=np.float32)
        np.add(values, np.float32(low), out=values)
        return torch.from_numpy(values)


# ---------------------------------------------------------------- sizes


def _allowed_shapes(config: ImageConfig, spec: InputSpec) -> list[Shape]:
    """The shapes that pictures are prepared to, each checked against the encoder's rules."""
    shapes = target_shapes(config)
    for shape in shapes:
        for axis, name, size in zip("HW", ("height", "width"), shape, strict=True):
            rule = spec.sizes.get(axis)
            if rule is None or rule.allows(size):
                continue
            if config.buckets is not None and config.buckets.shapes is not None:
                near = " and ".join(str(other) for other in nearest_allowed(size, rule))
                raise RecipeError(
                    f"modality.with.buckets.shapes: {[*shape]} has a {name} of {size}, but the"
                    f" encoder takes {rule}; nearest: {near}"
                )
            if config.buckets is not None:
                raise RecipeError(
                    f"modality.with.buckets: the bucket {shape[0]}x{shape[1]} has a {name} of"
                    f" {size}, but the encoder takes {rule}; make step a multiple of"
                    f" {rule.multiple}, and keep min and max within its limits"
                )
            near = " and ".join(str(other) for other in nearest_allowed(size, rule))
            raise RecipeError(
                f"modality.with.size: {name} {size} is not a size the encoder takes: {rule};"
                f" nearest: {near}"
            )
    return shapes


# ---------------------------------------------------------------- tensors


def _to_picture(tensor: Tensor, limits: tuple[float, float]) -> Image.Image:
    """Return an "RGB" picture of a (C, H, W) tensor; alpha is laid over the sheet's color."""
    if tensor.ndim != 3 or tensor.shape[0] not in MODES:
        raise ValueError(
            "render takes (C, H, W) tensors with 1, 3 or 4 channels, got shape"
            f" {tuple(tensor.shape)}"
        )
    values = (tensor.detach().to("cpu", torch.float32) - limits[0]) * (
        255 / (limits[1] - limits[0])
    )
    pixels = values.nan_to_num(0.0).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    if pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    canvas = Image.new("RGB", picture.size, SHEET_COLOR)
    canvas.paste(picture, mask=picture)
    return canvas


def _contact_sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return one picture with a row per inner sequence, gaps between and around."""
    width = (
        max(sum(picture.width + SHEET_GAP_PIXELS for picture in row) for row in rows)
        + SHEET_GAP_PIXELS
    )
    height = (
        sum(max(picture.height for picture in row) + SHEET_GAP_PIXELS for row in rows)
        + SHEET_GAP_PIXELS
    )
    sheet = Image.new("RGB", (width, height), SHEET_COLOR)
    top = SHEET_GAP_PIXELS
    for row in rows:
        left = SHEET_GAP_PIXELS
        for picture in row:
            sheet.paste(picture, (left, top))
            left += picture.width + SHEET_GAP_PIXELS
        top += max(picture.height for picture in row) + SHEET_GAP_PIXELS
    return sheet

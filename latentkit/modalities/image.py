"""Modality `image`: image files to tensors with one shape per bucket, and tensors to a contact
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
    decode_upright,
    frame_remarks,
    open_image,
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
    """Prepares images as (C, H, W) float32 in the encoder's range, in sRGB. C is 3, or 1 (luma) or
    4 (with alpha) if the encoder takes that.

    Args:
        config: size or buckets, crop and views.
        context: seed of the random crops, and what the encoder takes.

    Raises:
        RecipeError: the encoder doesn't accept the channels or sizes; the message names the nearest
            sizes.
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
        """Yield every view of an image, in the recipe's order: (C, H, W) float32 in the encoder's
        range, all from one decoding.

        Raises:
            SampleError: not an image, broken, too large, or too small under `on_small: skip`.
            SourceError: too small under `on_small: fail`.
            OSError: the media can't be reached.
        """
        memory = memory or self._buffers
        media = sample.read()
        image = open_image(media, self._formats, self._config.max_pixels)
        if self._config.min_size != "target":
            check_small(self._config, sample.key, (image.height, image.width))
        frames = frame_remarks(image)
        shrink = Shrink()
        if self._config.resize == "draft":
            original = upright_shape(image)
            shrink = shrink_on_load(image, self._cut(sample.key, original)[1])
        resizer = Resizer(self._decode(image, media), shrink, self._buffers)
        if shrink.divisor == 1:
            original = resizer.shape
        if self._config.min_size == "target":
            check_small(self._config, sample.key, original)
        for prepared in self._views(sample.key, resizer, original, memory):
            yield replace(prepared, remarks=[*prepared.remarks, *frames])

    def _decode(self, image: Image.Image, media: bytes) -> Image.Image | Levels:
        mode, background = MODES[self._input.channels], self._config.background
        if self._config.resize == "pillow":
            return decode_upright(image, mode, background)
        return decode_levels(image, media, mode, background, self._buffers)

    def _cut(self, key: str, original: Shape) -> tuple[dict[str, Box], float]:
        """Return the box of every crop, and the smallest number of image pixels per pixel of the
        result.
        """
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
        """Yield every view of a decoded image."""
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
        """Write a PNG with a row of images for each inner sequence, whatever their sizes; a single
        image is written as it is, without gaps around it. Parent folders are created.

        Args:
            tensors: (C, H, W) each, with C of 1, 3 or 4, any float dtype and device, in the
                encoder's range; other values are clipped.
            path: file to write.

        Raises:
            ValueError: there is no tensor, or one has another shape.
        """
        rows = [
            [_to_image(tensor, self._input.range) for tensor in row] for row in tensors if len(row)
        ]
        if not rows:
            raise ValueError("render needs at least one tensor, got none")
        path.parent.mkdir(parents=True, exist_ok=True)
        _contact_sheet(rows).save(path, format="PNG")

    def _to_tensor(self, levels: Levels, values: npt.NDArray[np.float32]) -> Tensor:
        """Return (C, H, W) float32 of levels, in `values`. Level 0 is exactly the lower limit of
        the encoder's range, 255 exactly the upper one.
        """
        low, high = self._input.range
        # Divided, because the inverse is not exact in floating point: 255 would miss the limit.
        np.divide(levels, np.float32(255 / (high - low)), out=values, dtype=np.float32)
        np.add(values, np.float32(low), out=values)
        return torch.from_numpy(values)


# ---------------------------------------------------------------- sizes


def _allowed_shapes(config: ImageConfig, spec: InputSpec) -> list[Shape]:
    """Return the shapes that images are prepared to, each checked against the encoder's rules."""
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


def _to_image(tensor: Tensor, limits: tuple[float, float]) -> Image.Image:
    """Return an "RGB" image of a (C, H, W) tensor with values in `limits`. Alpha is blended with
    the sheet's color.
    """
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
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if image.mode != "RGBA":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, SHEET_COLOR)
    canvas.paste(image, mask=image)
    return canvas


def _contact_sheet(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Return one image with a row for each inner sequence, its images side by side, with gaps
    between and around them.
    """
    if sum(map(len, rows)) == 1:
        return rows[0][0].convert("RGB")
    width = (
        max(sum(image.width + SHEET_GAP_PIXELS for image in row) for row in rows) + SHEET_GAP_PIXELS
    )
    height = (
        sum(max(image.height for image in row) + SHEET_GAP_PIXELS for row in rows)
        + SHEET_GAP_PIXELS
    )
    sheet = Image.new("RGB", (width, height), SHEET_COLOR)
    top = SHEET_GAP_PIXELS
    for row in rows:
        left = SHEET_GAP_PIXELS
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width + SHEET_GAP_PIXELS
        top += max(image.height for image in row) + SHEET_GAP_PIXELS
    return sheet

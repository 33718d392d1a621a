"""Resize images with a Lanczos filter of three lobes (Duchon 1979), twice as fast as Pillow.

The filter is a matrix whose numbers lie near its diagonal. It is cut into blocks of a few rows of
the result. Each block is a small dense product, which processors compute fastest. Sums are float32,
and only the result is rounded to levels, so it is also nearer to the ideal than Pillow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from latentkit.modalities.geometry import Box, Shape
from latentkit.runtime.buffers import BufferPool

Values = np.ndarray[Any, np.dtype[Any]]

LOBES = 3
BLOCK_ROWS = 8

ROW_BITS, COLUMN_BITS = 15, 12
"""Binary digits of the weights of the first and of the second pass."""

BETWEEN = 8
"""Steps per level in the result of the first pass."""

PRODUCT_LIMIT = 1 << 18
"""Most multiplications in one product for which OpenBLAS starts no threads."""


@dataclass(frozen=True)
class Block:
    """Weights that make some rows of a result from some rows of the original."""

    result: slice
    original: slice
    weights: Values


def resize_levels(
    levels: Values, box: Box, shape: Shape, memory: BufferPool | None = None
) -> Values:
    """Return a part of an image in another size: (C, H, W) float32, whole levels from 0 to 255.

    Args:
        levels: (height, width, C) uint8. With 4 channels the last is alpha, which weights the
            colors.
        box: the part to show; the filter also uses pixels around it, if the image has them.
        shape: (H, W) of the result.
    """
    if shape == (box.height, box.width) and box.top == int(box.top) and box.left == int(box.left):
        top, left = int(box.top), int(box.left)
        same = levels[top : top + shape[0], left : left + shape[1]]
        return np.ascontiguousarray(same.transpose(2, 0, 1), np.float32)
    memory = memory or BufferPool(pinned=False)
    rows = filter_blocks(levels.shape[0], box.top, box.height, shape[0], ROW_BITS, BETWEEN)
    columns = filter_blocks(
        levels.shape[1], box.left, box.width, shape[1], COLUMN_BITS, 1 / BETWEEN
    )
    left, right = columns[0].original.start, columns[-1].original.stop
    planes = _filter_rows(rows, levels[:, left:right], shape[0], memory)
    result = _filter_columns(columns, planes.reshape(-1, right - left), shape[1], left, memory)
    result = result.reshape(-1, *shape)
    if levels.shape[2] == 4:
        _divide_by_alpha(result)
    return np.rint(np.clip(result, 0, 255, out=result), out=result)


def _filter_rows(
    blocks: Sequence[Block], levels: Values, size: int, memory: BufferPool
) -> Values:
    """Filter (height, width, C) levels along the height to (C, size, width) float32, colors
    multiplied by alpha. The results are whole numbers, `BETWEEN` per level.
    """
    width, channels = levels.shape[1:]
    result = memory.get((channels, size, width), np.float32)
    longest = max(block.weights.shape[1] for block in blocks)
    room = memory.get((longest, width, channels), np.float32)
    filtered = memory.get((BLOCK_ROWS, width * channels), np.float32)
    for block in blocks:
        num_rows, num_original = block.weights.shape
        part = room[:num_original]
        part[...] = levels[block.original]
        if channels == 4:
            colors = part[..., :3]
            colors *= part[..., 3:]
            colors /= 255
            np.rint(colors, out=colors)
        part = part.reshape(num_original, -1)
        step = max(1, PRODUCT_LIMIT // block.weights.size)
        for begin in range(0, part.shape[1], step):
            here = slice(begin, begin + step)
            np.matmul(block.weights, part[:, here], out=filtered[:num_rows, here])
        lines = filtered[:num_rows].reshape(num_rows, width, channels)
        np.rint(lines.transpose(2, 0, 1), out=result[:, block.result])
    return result


def _filter_columns(
    blocks: Sequence[Block], lines: Values, size: int, left: int, memory: BufferPool
) -> Values:
    """Filter (lines, width) float32 to (lines, size) float32; `left` is the first column's
    position.
    """
    result = memory.get((len(lines), size), np.float32)
    for block in blocks:
        columns = slice(block.original.start - left, block.original.stop - left)
        weights = block.weights.T.copy()  # lies as the product wants it
        step = max(1, PRODUCT_LIMIT // weights.size)
        for begin in range(0, len(lines), step):
            here = slice(begin, begin + step)
            np.matmul(lines[here, columns], weights, out=result[here, block.result])
    return result


def _divide_by_alpha(planes: Values) -> None:
    """Divide the colors of (4, H, W) by alpha, in place; fully transparent pixels become black."""
    alpha = planes[3]
    planes[:3] = np.divide(
        planes[:3] * 255, alpha, out=np.zeros_like(planes[:3]), where=alpha > 0.5
    )


@lru_cache(maxsize=256)
def filter_blocks(
    original: int, start: float, length: float, size: int, bits: int, gain: float
) -> tuple[Block, ...]:
    """Return the filter along one axis as blocks.

    Args:
        original: number of pixels of the image.
        start: start of the part, in pixels.
        length: length of the part, in pixels.
        size: number of pixels of the result.
    """
    scale = length / size
    stretch = max(scale, 1.0)  # enlarging, the filter spans the pixels of the original
    centers = start + (np.arange(size) + 0.5) * scale
    firsts = np.maximum(np.floor(centers - LOBES * stretch + 0.5), 0).astype(int)
    lasts = np.minimum(np.floor(centers + LOBES * stretch + 0.5), original).astype(int)
    blocks = []
    for begin in range(0, size, BLOCK_ROWS):
        here = slice(begin, min(begin + BLOCK_ROWS, size))
        first, last = firsts[here].min(), lasts[here].max()
        pixels = np.arange(first, last) + 0.5
        offsets = (pixels - centers[here, None]) / stretch
        inside = (pixels > firsts[here, None]) & (pixels < lasts[here, None])
        weights = np.where(inside, np.sinc(offsets) * np.sinc(offsets / LOBES), 0)
        whole = _round_weights(weights / weights.sum(axis=1, keepdims=True), bits)
        whole *= gain / 2**bits
        blocks.append(Block(here, slice(int(first), int(last)), whole.astype(np.float32)))
    return tuple(blocks)


def _round_weights(weights: Values, bits: int) -> Values:
    """Convert rows of weights, each with the sum 1, to whole numbers with the sum `2**bits`.

    The running sum is rounded. This keeps a flat area flat, and puts the error into the finest
    detail, which a smaller image loses anyway. The sum of all magnitudes is at most that of the
    exact weights plus one for each lobe.
    """
    sums = np.cumsum(weights, axis=1) * 2**bits
    # Rounded to six digits first: the last digits of a sine differ between machines, and could
    # decide how a half is rounded.
    return np.diff(np.rint(np.round(sums, 6)), axis=1, prepend=0.0)

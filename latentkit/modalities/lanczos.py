"""Resize images with a Lanczos filter of three lobes (Duchon 1979), twice as fast as Pillow.

The filter is a matrix with few numbers beside its diagonal. It is cut into blocks of a few rows of
the result, each of which is a small dense product: what processors do fastest. Sums are float32,
and only the result is rounded to levels, so it is nearer to the ideal than Pillow's, too.
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
"""Steps in a level, of what the first pass gives to the second."""

PRODUCT_LIMIT = 1 << 18
"""Multiplications in one product, up to which OpenBLAS starts no threads of its own."""


@dataclass(frozen=True)
class Block:
    """Weights that make some rows of a result from some rows of the original."""

    result: slice
    original: slice
    weights: Values


def resize_levels(
    levels: Values, box: Box, shape: Shape, memory: BufferPool | None = None
) -> Values:
    """A part of an image in another size: (C, H, W) float32, whole levels from 0 to 255.

    Args:
        levels: (height, width, C) uint8; C of 4 has alpha last, by which the colors count.
        box: the part shown; the filter looks beyond it, as far as the image goes.
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
    """(C, size, width) float32 of (height, width, C) levels, colors multiplied by alpha: whole
    numbers, `BETWEEN` for a level.
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
    """(lines, size) float32 of (lines, width) float32, whose first column is `left`."""
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
    """Take alpha out of the colors of (4, H, W) again; black where nothing shows."""
    alpha = planes[3]
    planes[:3] = np.divide(
        planes[:3] * 255, alpha, out=np.zeros_like(planes[:3]), where=alpha > 0.5
    )


@lru_cache(maxsize=256)
def filter_blocks(
    original: int, start: float, length: float, size: int, bits: int, gain: float
) -> tuple[Block, ...]:
    """The filter along one axis.

    Args:
        original: pixels of the image.
        start: where the part begins, in pixels.
        length: of the part, in pixels.
        size: pixels of the result.
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
    """Rows of weights, which sum up to 1, as whole numbers that sum up to `2**bits`.

    Rounded is the running sum. That keeps a flat area flat, puts the error into the finest detail,
    which a smaller picture loses anyway, and makes the sum of all magnitudes no larger than that of
    the exact weights and one for each lobe.
    """
    sums = np.cumsum(weights, axis=1) * 2**bits
    # To six digits first: the last ones of a sine are not the same everywhere, and could decide
    # how a half is rounded.
    return np.diff(np.rint(np.round(sums, 6)), axis=1, prepend=0.0)

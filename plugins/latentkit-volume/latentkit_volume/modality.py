"""Modality `volume`: prepares NIfTI and NRRD files and DICOM series as patches of one size, and
renders patches as an image of their middle slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample
from latentkit.errors import RecipeError, SampleError
from latentkit.kit import draw_fractions, nearest_allowed, refuse_beyond_memory
from latentkit_volume.reading import read_any
from latentkit_volume.resampling import make_grid, sample_patch
from latentkit_volume.slices import draw_sheet
from latentkit_volume.views import Shape, grid_fractions, place_patch
from latentkit_volume.volumes import Volume, Voxels

if TYPE_CHECKING:
    from torch import Tensor

    from latentkit_volume.plugin import VolumeConfig

AXES = "CDHW"


class VolumeModality:
    """Prepares patches as (C, D, H, W) float32 in the encoder's range.

    D points up (towards the head), H to the front, W to the right.

    Args:
        config: size, spacing, window and views.
        context: seed of the random patches, and what the encoder takes.

    Raises:
        RecipeError: the encoder doesn't accept the axes, channels or sizes.
    """

    metrics: Sequence[str] = ("psnr",)
    ignores_sizes = True

    def __init__(self, config: VolumeConfig, context: BuildContext) -> None:
        self._config = config
        self._seed = context.seed
        self._input = context.input or InputSpec(channels=1, axes=AXES)
        if self._input.axes != AXES:
            raise RecipeError(
                f"modality volume makes tensors of the axes {AXES}, but the encoder takes"
                f" {self._input.axes}"
            )
        if self._input.channels > 1 and config.frame != "channels":
            raise RecipeError(
                f"modality.with.frame: the encoder takes {self._input.channels} channels, and a 3-D"
                " volume has one; frame: channels makes channels of a 4-D volume's frames"
            )
        self._shape = _patch_shape(config.size, self._input)
        refuse_beyond_memory("modality.with.size", (self._input.channels, *self._shape))

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        """Yield every view of a volume, in the recipe's order: (C, D, H, W) float32 in the
        encoder's range, all from one reading of the file.

        Raises:
            SampleError: the file isn't a volume, is damaged, or can't be used.
            OSError: the media can't be reached.
        """
        config = self._config
        volume = read_any(sample.read(), config.frame, config.assume, config.max_voxels)
        if len(volume.voxels) != self._input.channels:
            raise SampleError(
                f"a volume of {len(volume.voxels)} frames, and the encoder takes"
                f" {self._input.channels} channels"
            )
        grid = make_grid(volume, config.spacing, config.align == "patient")
        windows = [self._window(channel) for channel in volume.voxels]
        for view in config.views:
            start = place_patch(grid.shape, self._shape, self._fractions(sample.key, view))
            patch = [
                self._scaled(sample_patch(channel, grid, start, self._shape, window), window)
                for channel, window in zip(volume.voxels, windows, strict=True)
            ]
            affine = grid.affine.copy()
            affine[:3, 3] += affine[:3, :3] @ start
            geometry = {
                **_describe(volume),
                "grid": list(grid.shape),
                "start": list(start),
                "affine": [round(float(value), 6) for value in affine[:3].flat],
                "window": [value for window in windows for value in window],
            }
            yield Prepared(
                view,
                "x".join(map(str, self._shape)),
                torch.from_numpy(np.stack(patch)),
                geometry,
                volume.remarks,
            )

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Write a PNG with one row per inner sequence: the middle slices of each tensor, as in
        `draw_sheet`.

        Args:
            tensors: (C, D, H, W) each, any float dtype and device, in the encoder's range; other
                values are clipped.
            path: file to write; parent folders are created.

        Raises:
            ValueError: there is no tensor, or one has another shape.
        """
        spacing = self._config.spacing
        sides = spacing if isinstance(spacing, tuple) else (1.0, 1.0, 1.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(tensors, self._input.range, sides).save(path, format="PNG")

    def _window(self, channel: Voxels) -> tuple[float, float]:
        """Return the values that become the lowest and the highest of the range."""
        if self._config.window is not None:
            return self._config.window
        low, high = (float(value) for value in np.percentile(channel, self._config.percentiles))
        if low == high:
            raise SampleError(
                f"nothing to see: the percentiles {self._config.percentiles} of its voxels are both"
                f" {low:g}"
            )
        return low, high

    def _fractions(self, key: str, view: str) -> Sequence[float]:
        """Return a patch's position along D, H and W, from the first possible position (0) to the
        last (1).
        """
        fractions = grid_fractions(view)
        if fractions is not None:
            return fractions
        return (
            (0.5, 0.5, 0.5)
            if view == "plain" and self._config.crop == "center"
            else draw_fractions(self._seed, key, view, 3)
        )

    def _scaled(self, values: Voxels, window: tuple[float, float]) -> Voxels:
        """Map values in the window to the encoder's range, in place."""
        low, high = self._input.range
        values -= np.float32(window[0])
        values /= np.float32(window[1] - window[0])
        values *= np.float32(high - low)
        values += np.float32(low)
        return values.clip(low, high, out=values)


def _patch_shape(size: int | Shape, spec: InputSpec) -> Shape:
    """Return depth, height and width, checked against the encoder's rules."""
    shape = (size, size, size) if isinstance(size, int) else size
    for axis, name, count in zip("DHW", ("depth", "height", "width"), shape, strict=True):
        rule = spec.sizes.get(axis)
        if rule is not None and not rule.allows(count):
            near = " and ".join(map(str, nearest_allowed(count, rule)))
            raise RecipeError(
                f"modality.with.size: a {name} of {count} voxels isn't one that the encoder"
                " accepts:"
                f" {rule}; nearest: {near}"
            )
    return shape


def _describe(volume: Volume) -> dict[str, object]:
    """Return the geometry of the file: where its axes point, and voxels and millimeters along D, H
    and W.
    """
    sides = np.linalg.norm(volume.affine[:3, :3], axis=0)
    return {
        "axes": volume.axes,
        "shape": list(volume.voxels.shape[1:]),
        "spacing": [round(float(side), 6) for side in sides],
    }

"""The latent datasets that exporters are tested with."""

from __future__ import annotations

import functools
import io
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from latentkit.contracts import (
    Entry,
    ExportNeeds,
    InputSpec,
    LatentLayout,
    Normalization,
    Prepared,
    Sample,
)
from latentkit.errors import SampleError

KEYS = ("a.png", "b/a.png", "../up.png", "zoë, 'x'\n.png", "con.tar.gz", "bad.png", "a")
"""Keys as sources may give them: in folders, with "..", quotes, line breaks and dots, one the start
of another, and one of a skipped sample.
"""
VIEWS = ("plain", "hflip")
DATASET = "latents"


@dataclass(frozen=True)
class DatasetShape:
    """The properties of a dataset to test with.

    Args:
        views: of each sample.
        axes: "CHW", "CTHW" as of videos (5 frames, 2 of latents), or "CL" as of audio and of texts.
        channels, downscale: of latents.
        shift, scale: of the normalization, one number or one per channel.
        size_multiple: of the sides of what was encoded.
        has_two_sizes: whether every other sample is twice as wide.
        has_moments: whether mean and logvar are stored, or one latent.
        attributes: names of the samples' attributes; "text" and "label" may hold any values.
        dtype: dtype of the stored tensors.
    """

    views: tuple[str, ...] = VIEWS
    axes: str = "CHW"
    channels: int = 3
    downscale: int = 8
    shift: float | tuple[float, ...] = 0.25
    scale: float | tuple[float, ...] = 2.0
    size_multiple: int = 1
    has_two_sizes: bool = True
    has_moments: bool = True
    attributes: tuple[str, ...] = field(default=("text", "label"))
    dtype: Literal["float16", "int8"] = "float16"

    @property
    def sides(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return height and width of the images with even and with odd numbers."""
        side = math.lcm(2 * self.downscale, self.size_multiple)
        return (side, side), (side, side * (1 + self.has_two_sizes))


def full_shape(needs: ExportNeeds | None) -> DatasetShape:
    """Return a dataset that an exporter accepts, with more than it needs."""
    if needs is None:
        return DatasetShape()
    constants = needs.normalization or Normalization(0.25, 2.0)
    multiple = needs.size_multiple
    if needs.axes not in ("", "CHW", "CTHW", "CL"):
        raise AssertionError(
            f"override make_dataset: the kit's have axes CHW, CTHW or CL, not {needs.axes}"
        )
    return DatasetShape(
        axes=needs.axes or "CHW",
        channels=needs.channels or 3,
        downscale=needs.downscale or 8,
        shift=_hashable(constants.shift),
        scale=_hashable(constants.scale),
        size_multiple=next((size[0] for size in needs.sizes if size[0] == size[1]), multiple),
        has_two_sizes=not (needs.one_size or needs.square or needs.sizes),
    )


def _hashable(constant: Any) -> float | tuple[float, ...]:
    return float(constant) if isinstance(constant, int | float) else tuple(constant)


def copy_dataset(folder: Path, shape: DatasetShape | None = None) -> Path:
    """Copy a finished latent dataset of 12 rows to a new folder, and return the folder.

    Args:
        shape: properties of the dataset; None: two views of six samples in two shapes, with moments
            of 3 channels.
    """
    shutil.copytree(made_dataset(shape or DatasetShape()), folder)
    return folder


def image_bytes(key: str) -> bytes:
    """Return a PNG for a key, the media of the kit's samples."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 24), (len(key), 80, 120)).save(file, "png")
    return file.getvalue()


class _Source:
    def __init__(self, shape: DatasetShape) -> None:
        self._shape = shape

    def __len__(self) -> int:
        return len(KEYS)

    def __getitem__(self, index: int) -> Sample:
        entry = list(self.entries())[index]
        return Sample(entry.key, entry.key, entry.attributes, entry.stamp)

    def entries(self) -> Iterator[Entry]:
        for number, key in enumerate(KEYS):
            values = {"text": f"{key} \\ \"'\t", "label": number}
            known = {name: values.get(name, number) for name in self._shape.attributes}
            yield Entry(key, "1", known)


class _Modality:
    metrics: Sequence[str] = ()

    def __init__(self, shape: DatasetShape) -> None:
        self._shape = shape

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        if sample.key == "bad.png":
            raise SampleError("no image")
        number = KEYS.index(sample.key)
        height, width = self._shape.sides[number % 2]
        frames = "5x" if self._shape.axes == "CTHW" else ""
        image = torch.rand((3, height, width), generator=torch.Generator().manual_seed(number))
        for view in self._shape.views:
            tensor = image if view == "plain" else image.flip(-1)
            yield Prepared(view, f"{frames}{height}x{width}", tensor, self._geometry)

    @property
    def _geometry(self) -> dict[str, Any]:
        """The seconds of a sound, the frame rate of a video; nothing of an image."""
        seconds = {"start": 0.5, "end": 3.0}
        return {"CL": seconds, "CTHW": {"fps": 12.0}}.get(self._shape.axes, {})

    def render(self, tensors: Any, path: Path) -> None:
        raise AssertionError("the dataset has no preview")


class _Encoder:
    modality = "image"
    input = InputSpec(channels=3, range=(0.0, 1.0))

    def __init__(self, shape: DatasetShape) -> None:
        self._shape = shape
        kind: Any = "gaussian" if shape.has_moments else "deterministic"
        self.layout = LatentLayout("latent", kind, shape.axes, shape.channels, shape.downscale)
        self.normalization = Normalization(shift=shape.shift, scale=shape.scale)

    def encode(self, batch: Tensor) -> dict[str, Tensor]:
        small = avg_pool2d(batch, self._shape.downscale)
        repeats = -(-self._shape.channels // 3)
        mean = torch.cat([small + step for step in range(repeats)], 1)[:, : self._shape.channels]
        if self._shape.axes == "CL":
            mean = mean.mean(dim=2)
        elif self._shape.axes == "CTHW":
            mean = torch.stack([mean, mean + 1], dim=2)
        return {"mean": mean, "logvar": mean - 1} if self._shape.has_moments else {"latent": mean}

    def fingerprint(self) -> dict[str, str]:
        return {"weights": "none"}


@functools.cache
def _kept_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder that is removed when the interpreter ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def made_dataset(shape: DatasetShape) -> Path:
    """Return a finished latent dataset, which is made once per process."""
    from latentkit.encoding.encode_source import encode_source
    from latentkit.encoding.make_plan import EncodeInputs, EncodeSettings
    from latentkit.executors.local import LocalExecutor
    from latentkit.store.local_folder import LocalFolder

    path = Path(tempfile.mkdtemp(dir=_kept_folder().name)) / DATASET
    inputs = EncodeInputs(
        _Source(shape),
        _Modality(shape),
        list(shape.views),
        lambda device: _Encoder(shape),
        {"encoder.name": "test"},
    )
    settings = EncodeSettings(
        dtype=shape.dtype, batch_size=2, unit_size=4, threads=1, compile=False
    )
    encode_source(
        LocalFolder(path), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False
    )
    return path

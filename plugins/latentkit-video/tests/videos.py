"""Videos made on the spot, of frames that tell their own number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import torch
from av.video import VideoFrame, VideoStream
from latentkit_video.modality import VideoModality
from latentkit_video.plugin import VideoConfig

from latentkit.contracts import BuildContext, InputSpec, Prepared, Sample

Picture = npt.NDArray[np.uint8]
TICKS = 1000


def gray(number: int) -> int:
    """The gray level of the frame of that number."""
    return 8 + 4 * number


def numbers_of(prepared: Prepared) -> list[int]:
    """The numbers of a clip's frames, of a video made by `numbered`."""
    assert isinstance(prepared.tensor, torch.Tensor)
    levels = (prepared.tensor.mean((0, 2, 3)) + 1) * 127.5
    return [round((float(level) - 8) / 4) for level in levels]


def numbered(count: int, height: int = 24, width: int = 32) -> list[Picture]:
    """Pictures whose gray level is that of their number; up to 60, as YUV rounds levels."""
    return [np.full((height, width, 3), gray(number), np.uint8) for number in range(count)]


def encode(
    path: Path,
    pictures: Iterable[Picture],
    *,
    times: Sequence[int] | None = None,
    rate: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv444p",
    options: dict[str, str] | None = None,
    prepare: Callable[[VideoStream], Any] | None = None,
) -> Path:
    """Write a video.

    Args:
        times: of each picture, in milliseconds; none: `rate` per second.
        options: of the encoder; none: without loss, a key frame every 10 frames.
        prepare: called with the stream before anything is written.
    """
    if options is None:
        options = {"qp": "0", "g": "10", "bf": "2"} if codec == "libx264" else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, TICKS)
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
                if prepare is not None:
                    prepare(stream)
            frame = VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.time_base = Fraction(1, TICKS)
            frame.pts = round(number * TICKS / rate) if times is None else times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_modality(spec: InputSpec | None = None, seed: int = 0, **options: Any) -> VideoModality:
    """The modality with these options; clips of 4 frames of 16 x 16 unless they say otherwise."""
    config = VideoConfig.model_validate(
        {"frames": 4, **({} if "buckets" in options else {"size": 16}), **options}
    )
    return VideoModality(config, BuildContext(seed=seed, input=spec))


def prepare_one(path: Path, span: tuple[float, float] | None = None, **options: Any) -> Prepared:
    """The first view of a video or of a part of it."""
    return next(iter(make_modality(**options).prepare(Sample(path.name, path, span=span))))

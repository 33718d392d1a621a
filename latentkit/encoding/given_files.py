"""Prepares files and images that a caller passes directly, in the same way as those of a source."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from latentkit.contracts import Modality, Sample, Source
from latentkit.errors import SampleError, SourceError
from latentkit.preparing.sample_preparer import Preparer, Task
from latentkit.preparing.stack import stack
from latentkit.runtime.buffers import BufferPool

if TYPE_CHECKING:
    from PIL.Image import Image

    GivenFile = str | os.PathLike[str] | bytes | Image | Sample


def prepare_files(files: Sequence[GivenFile], modality: Modality, takes_texts: bool) -> Any:
    """Return the first view of each file as a batch on the CPU, or a mapping of batches.

    Args:
        files: paths, contents of files, PIL images or samples.
        takes_texts: whether a `str` is a text instead of a path.

    Raises:
        SourceError: a file doesn't exist.
        SampleError: a file can't be prepared; the message says why.
        ValueError: the files have different shapes, which can't form a batch.
    """
    samples = [as_sample(file, place, takes_texts) for place, file in enumerate(files)]
    preparer = Preparer(cast(Source, samples), modality, ["plain"])
    rows = []
    for sample in samples:
        prepared = preparer.prepare([Task(0, sample.key, sample=sample)])[0]
        if prepared.reason:
            raise SampleError(f"{sample.key}: {prepared.reason}")
        rows.append(prepared.rows[0].view)
    buckets = list(dict.fromkeys(row.bucket for row in rows))
    if len(buckets) > 1:
        raise ValueError(
            f"the files are prepared to {' and '.join(buckets[:4])}, which can't form a batch."
            " Encode the files of each shape separately"
        )
    return stack([row.tensor for row in rows], BufferPool(False))


def as_sample(file: GivenFile, place: int, takes_texts: bool) -> Sample:
    """Return a sample with a file's media. Its key is the path, or its index among the given files.

    Raises:
        SourceError: a file doesn't exist.
        TypeError: `prepare_files` doesn't accept this type.
    """
    if isinstance(file, Sample):
        return file
    if isinstance(file, bytes) or (isinstance(file, str) and takes_texts):
        return Sample(f"input {place}", file)
    if isinstance(file, str | os.PathLike):
        path = Path(file).expanduser()
        if not path.is_file():
            raise SourceError(f"{path}: no such file")
        return Sample(str(path), path)
    if hasattr(file, "save") and hasattr(file, "getexif"):
        return Sample(f"input {place}", _image_bytes(file))
    raise TypeError(
        "expected a tensor, a path, the bytes of a file, a PIL image, or a list of these, got"
        f" {type(file).__name__}"
    )


def _image_bytes(image: Image) -> bytes:
    """Return an image as a lossless file, with its color profile and orientation."""
    known = {"icc_profile": image.info.get("icc_profile"), "exif": image.getexif()}
    options: dict[str, Any] = {name: value for name, value in known.items() if value}
    for kind, own in (("PNG", {"compress_level": 1}), ("TIFF", {})):
        file = io.BytesIO()
        try:
            image.save(file, kind, **options, **own)
        except OSError:  # for example a mode that PNG lacks
            continue
        return file.getvalue()
    raise SampleError(f"a PIL image of mode {image.mode} can't be encoded; convert it to RGB")

"""Files and pictures that a caller gives by hand, prepared as a run prepares those of a source."""

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
        takes_texts: whether a `str` is a text, instead of a path.

    Raises:
        SourceError: there is no such file.
        SampleError: one can't be prepared; says why.
        ValueError: rows of several shapes, which are no batch.
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
            f"the files are prepared to {' and '.join(buckets[:4])}, which are no batch; encode"
            " those of each shape by themselves"
        )
    return stack([row.tensor for row in rows], BufferPool(False))


def as_sample(file: GivenFile, place: int, takes_texts: bool) -> Sample:
    """Return a sample with a file's media; its key is the path, or its place among those given.

    Raises:
        SourceError: there is no such file.
        TypeError: it is none of what `prepare_files` takes.
    """
    if isinstance(file, Sample):
        return file
    if isinstance(file, bytes) or (isinstance(file, str) and takes_texts):
        return Sample(f"input {place}", file)
    if isinstance(file, str | os.PathLike):
        path = Path(file).expanduser()
        if not path.is_file():
            raise SourceError(f"{path}: there is no such file")
        return Sample(str(path), path)
    if hasattr(file, "save") and hasattr(file, "getexif"):
        return Sample(f"input {place}", _picture_bytes(file))
    raise TypeError(
        "expected a tensor, a path, the bytes of a file, a PIL image, or a list of these, got"
        f" {type(file).__name__}"
    )


def _picture_bytes(picture: Image) -> bytes:
    """A picture as a file, without loss, with its color profile and the way up it is."""
    known = {"icc_profile": picture.info.get("icc_profile"), "exif": picture.getexif()}
    options: dict[str, Any] = {name: value for name, value in known.items() if value}
    for kind, own in (("PNG", {"compress_level": 1}), ("TIFF", {})):
        file = io.BytesIO()
        try:
            picture.save(file, kind, **options, **own)
        except OSError:  # such as a mode that PNG doesn't have
            continue
        return file.getvalue()
    raise SampleError(f"a PIL image of mode {picture.mode} can't be encoded; convert it to RGB")

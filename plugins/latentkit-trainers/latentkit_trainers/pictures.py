"""Images as they were encoded, for trainers that read pixels beside latents."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from latentkit.contracts import ExportItem, ExportRow


def write_picture(item: ExportItem, row: ExportRow, file: Path, is_blank: bool) -> None:
    """Write what a view shows, in the size that was encoded; a blank one is black."""
    file.parent.mkdir(parents=True, exist_ok=True)
    size = row.size[1], row.size[0]
    picture = Image.new("RGB", size) if is_blank else cut_picture(item.media, row)
    picture.save(file)


def cut_picture(media: Any, row: ExportRow) -> Image.Image:
    """Return the part of an image that a view shows, RGB, in the size that was encoded.

    Args:
        media: path, bytes or `PIL.Image.Image`, as a source gives it.
        row: the view.
    """
    height, width = row.size
    with _open(media) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    top, left, rows, columns = row.geometry.get("crop") or (0, 0, image.height, image.width)
    box = (left, top, left + columns, top + rows)
    cut = image.resize((width, height), Image.Resampling.LANCZOS, box)
    return ImageOps.mirror(cut) if row.geometry.get("flip") else cut


def _open(media: Any) -> Image.Image:
    if isinstance(media, Image.Image):
        return media.copy()  # the source's own stays open
    if isinstance(media, bytes):
        return Image.open(io.BytesIO(media))
    return Image.open(os.fspath(media))

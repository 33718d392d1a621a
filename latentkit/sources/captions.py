"""Captions that lie in a file beside their media."""

from __future__ import annotations

from latentkit.errors import SourceError
from latentkit.sources.files import Files

CAPTION_SUFFIX = ".txt"


def read_caption(files: Files, path: str) -> str:
    """The text of a caption's file.

    Raises:
        SourceError: it is not UTF-8 text, or is gone.
    """
    try:
        return files.read(path).decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise SourceError(f"source folder: the caption {files.name(path)} can't be read as UTF-8 text: {err}") from err

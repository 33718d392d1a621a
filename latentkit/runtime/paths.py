"""Paths and URLs as users write them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from latentkit.errors import RecipeError

_SCHEME = re.compile(r"[^/\\]{2,}://")
"""At least two characters, because `C:` is a disk on Windows."""


SEPARATOR = "::"
"""Separates several paths in one text, as in webdataset."""

PATTERN_SIGNS = "*?[{"
"""Characters of file patterns such as wds/*.tar or wds/{00000..00012}.tar."""


def in_shell(path: object) -> str:
    """Return a path or URL as a word of a command line, quoted if needed."""
    text = str(path)
    return subprocess.list2cmdline([text]) if sys.platform == "win32" else shlex.quote(text)


def is_url(path: str) -> bool:
    """Return whether the text is a URL, such as s3://bucket/photos, which is never made
    absolute.
    """
    return bool(_SCHEME.match(path))


def find_file_path(url: str) -> str | None:
    """Return the path in a file:// URL, such as file:///data/photos; None for any other text.

    Raises:
        RecipeError: the URL names another machine.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in ("file", "local"):
        return None
    rest = rest.removeprefix("localhost")
    if not rest.startswith(("/", "~", ".")):
        raise RecipeError(f"{url}: expected three slashes and a path, such as file:///data/photos")
    return rest[1:] if re.match("/[A-Za-z]:", rest) and os.name == "nt" else rest


def find_local_path(text: str, base: Path) -> Path | None:
    """Return the absolute path that `text` names; None for anything else, such as a hub id.

    It is a path if it exists below `base`, is absolute, starts with `.` or `~`, or is a file
    pattern.
    """
    if not text or is_url(text):
        return None
    path = os.path.abspath(base / os.path.expanduser(text))
    is_path = (
        text.startswith((".", "/", "~"))
        or os.path.isabs(text)
        or any(sign in text for sign in PATTERN_SIGNS)
    )
    return Path(path) if is_path or os.path.exists(path) else None

"""Safe file names for keys, which may contain any character."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

LONGEST_PART = 120
"""Most bytes of one folder's or file's name; file systems take 255, and trainers append to it."""


def safe_name(key: str) -> str:
    """Return a relative path of letters, digits and " _-", with the key's folders.

    The path never leads out of its folder, to a hidden file, or from the root. It has no dots, as
    trainers cut names at a dot.
    """
    parts = [part for part in re.split(r"[/\\]", key) if part not in ("", ".", "..")]
    if parts:
        parts[-1] = PurePosixPath(parts[-1]).stem
    return "/".join(_safe_part(part) for part in parts) or "_"


def _safe_part(part: str) -> str:
    return shorten(re.sub(r"[^\w -]", "_", part)).strip() or "_"


def shorten(name: str) -> str:
    """Return a path with each part cut to `LONGEST_PART` bytes."""
    parts = (part.encode()[:LONGEST_PART].decode(errors="ignore") for part in name.split("/"))
    return "/".join(parts)


def make_unique(names: Iterable[str]) -> list[str]:
    """Return the names, each unique in any case: repeated ones get a number, such as "001-2"."""
    wanted = list(names)
    last_number = dict.fromkeys((name.casefold() for name in wanted), 0)
    numbered, distinct = set[str](), []
    for name in wanted:
        number = last_number[name.casefold()] + 1
        other = name if number == 1 else f"{name}-{number}"
        while number > 1 and (other.casefold() in numbered or other.casefold() in last_number):
            number += 1
            other = f"{name}-{number}"
        last_number[name.casefold()] = number
        if number > 1:
            numbered.add(other.casefold())
        distinct.append(other)
    return distinct

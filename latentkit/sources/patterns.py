"""Files by pattern: with `*`, `?`, `**`, and braces such as {00000..00012} or {a,b}, as
webdataset's lists of shards are written.
"""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from latentkit.errors import SourceError
from latentkit.runtime.paths import SEPARATOR

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def is_pattern(text: str) -> bool:
    """Whether a text names files by a pattern, or several."""
    return SEPARATOR in text or bool(BRACES.search(text)) or glob.has_magic(text)


def find_matches(patterns: str | Sequence[str], base: Path) -> list[Path]:
    """Return absolute paths of the files that patterns name, in their order, then by name.

    Raises:
        SourceError: a pattern, or a name out of its braces, has no file.
    """
    texts = patterns.split(SEPARATOR) if isinstance(patterns, str) else patterns
    found: dict[Path, None] = {}
    for text in itertools.chain.from_iterable(map(expand_braces, texts)):
        path = base / Path(text).expanduser()
        matches = (
            [path]
            if path.exists()
            else sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        )
        if not matches:
            raise SourceError(
                f"source datasets: no file fits {text!r} (looked for {path.absolute()}), and it is"
                " not a hub id"
            )
        found |= dict.fromkeys(match.absolute() for match in matches)
    return list(found)


def expand_braces(text: str) -> Iterator[str]:
    """The texts that braces stand for; numbers keep their zeros."""
    match = BRACES.search(text)
    if match is None:
        yield text
        return
    first, last, names = match.groups()
    numbers = () if names is not None else range(int(first), int(last) + 1)
    parts = (
        names.split(",")
        if names is not None
        else [str(number).zfill(len(first)) for number in numbers]
    )
    for part in parts:
        yield from expand_braces(text[: match.start()] + part + text[match.end() :])

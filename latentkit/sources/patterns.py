"""Files by pattern: with `*`, `?`, `**`, and braces such as {00000..00012} or {a,b}, in which
webdataset writes lists of shards.
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
    """Return whether a text is a pattern or names several files."""
    return SEPARATOR in text or bool(BRACES.search(text)) or glob.has_magic(text)


def find_matches(patterns: str | Sequence[str], base: Path) -> list[Path]:
    """Return absolute paths of the files that match: in the order of the patterns, and by name
    within a pattern.

    Raises:
        SourceError: a pattern, or a name from its braces, matches no file.
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
                f"source datasets: no file matches {text!r} (looked for {path.absolute()}), and it"
                " is not a hub id"
            )
        found |= dict.fromkeys(match.absolute() for match in matches)
    return list(found)


def expand_braces(text: str) -> Iterator[str]:
    """Yield the texts that braces stand for. Numbers keep their leading zeros."""
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

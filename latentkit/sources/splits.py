"""Splits of files, by the words in their paths that the library `datasets` knows them by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

WORDS = {
    **{
        "train": "train",
        "training": "train",
        "validation": "validation",
        "valid": "validation",
        "val": "validation",
    },
    **{
        "dev": "validation",
        "test": "test",
        "testing": "test",
        "eval": "test",
        "evaluation": "test",
    },
}
SPLIT_WORD = re.compile(
    rf"(?<![^-._ 0-9/])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?=[-._ 0-9/])"
)


def split_files(names: Sequence[str]) -> dict[str, list[str]]:
    """Return each split's files, by the last such word of a path; else they are "train"."""
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        words = SPLIT_WORD.findall(name.lower())
        splits[WORDS[words[-1]] if words else "train"].append(name)
    return dict(splits)

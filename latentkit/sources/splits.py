"""Splits of files, recognized by the same words in their paths as in the library `datasets`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from latentkit.contracts import Remark

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
    """Return the files of each split, in order. The last such word of a path decides; without one
    the split is "train".
    """
    splits: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        words = SPLIT_WORD.findall(name.lower())
        splits[WORDS[words[-1]] if words else "train"].append(name)
    return dict(splits)


def names_in(split: str) -> list[str]:
    """Return the names in a recipe's split, such as "train[:100]+test"."""
    return list(dict.fromkeys(re.sub(r"\[.*?\]", "", part).strip() for part in split.split("+")))


def remark_other_splits(counts: Mapping[str, int], wanted: str, kind: str) -> list[Remark]:
    """Count each split that a recipe doesn't ask for.

    Args:
        counts: number of files or rows of each split.
        wanted: the recipe's split.
        kind: what is counted, such as "rows".
    """
    return [
        Remark(f"{kind} of the split {name}, not read; source.with.split={name} takes them", count)
        for name, count in counts.items()
        if name not in (*names_in(wanted), "all")
    ]

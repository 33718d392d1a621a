"""A source's remarks on what it found but doesn't use: checked, and in a fixed order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from latentkit.contracts import Remark, Source, StreamSource
from latentkit.errors import PluginError

MAX_KINDS = 100
"""Kinds of remarks that are kept; all others are combined to one."""

MAX_PRINTED = 6
"""Lines printed before training or evaluation."""


def read_remarks(source: Source | StreamSource) -> list[Remark]:
    """Return the source's remarks, one per text, most frequent first; nothing if it has no
    `remarks`.

    Raises:
        PluginError: an item isn't a remark, or isn't on one line.
    """
    give = getattr(source, "remarks", None)
    return [] if give is None else merge_remarks(_checked(remark, source) for remark in give())


def merge_remarks(remarks: Iterable[Remark]) -> list[Remark]:
    """Sum the remarks, and combine all kinds beyond `MAX_KINDS` to one."""
    found = sum_remarks(remarks)
    others = found[MAX_KINDS:]
    if not others:
        return found
    text = f"of {len(others)} other kinds, which are not listed"
    return [*found[:MAX_KINDS], Remark(text, sum(one.count for one in others))]


def sum_remarks(remarks: Iterable[Remark]) -> list[Remark]:
    """Return one remark per text with the sum of its counts and the first example, most frequent
    first. Remarks with a count of 0 are dropped.
    """
    by_text: dict[str, Remark] = {}
    for remark in remarks:
        before = by_text.get(remark.text, Remark(remark.text, 0))
        example = before.example or remark.example
        by_text[remark.text] = Remark(remark.text, before.count + remark.count, example)
    return sorted(
        (one for one in by_text.values() if one.count), key=lambda one: (-one.count, one.text)
    )


def list_remarks(remarks: Sequence[Remark], most: int, command: str = "") -> list[str]:
    """Return one line per remark. If there are more than `most`, the last line says how many others
    the command shows.
    """
    if len(remarks) <= most:
        return [str(remark) for remark in remarks]
    others = f"{len(remarks) - most + 1} other remarks" + (
        f"; `{command}` lists them" if command else ""
    )
    return [*map(str, remarks[: most - 1]), others]


def print_remarks(remarks: Sequence[Remark]) -> None:
    """Print the first remarks on what a source found but doesn't use, one per line."""
    for text in list_remarks(remarks, MAX_PRINTED):
        print(f"note: {text}", file=sys.stderr, flush=True)


def _checked(remark: object, source: object) -> Remark:
    """Return the remark after checking its type, text and count."""
    if not isinstance(remark, Remark):
        raise PluginError(f"{type(source).__name__}.remarks() gave {remark!r}, expected a Remark")
    if not remark.text or "\n" in remark.text or remark.count < 0:
        expected = "expected a text on one line and a count of at least 0"
        raise PluginError(f"{type(source).__name__}.remarks() gave {remark!r}, {expected}")
    # File names may contain bytes that aren't UTF-8, which dataset.json can't store.
    text, example = (
        part.encode("utf-8", "backslashreplace").decode() for part in (remark.text, remark.example)
    )
    return Remark(text, remark.count, example)

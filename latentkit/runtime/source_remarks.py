"""What a source says that it found and does not use, held to what a remark is, in a fixed order."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from latentkit.contracts import Remark, Source, StreamSource
from latentkit.errors import PluginError

MOST_KINDS = 100
"""Kinds of remarks that are kept; the rest is one more."""

MOST_SAID = 6
"""Lines before a training or an evaluation."""


def remarks_of(source: Source | StreamSource) -> list[Remark]:
    """What the source remarks, one per text, the most frequent first.

    Nothing where it has no `remarks`.

    Raises:
        PluginError: what it gives are not remarks, or not on one line.
    """
    give = getattr(source, "remarks", None)
    return [] if give is None else merged(_checked(remark, source) for remark in give())


def merged(remarks: Iterable[Remark]) -> list[Remark]:
    """As `summed`, with all kinds beyond `MOST_KINDS` as one more."""
    found = summed(remarks)
    others = found[MOST_KINDS:]
    if not others:
        return found
    text = f"of {len(others)} other kinds, which are not listed"
    return [*found[:MOST_KINDS], Remark(text, sum(one.count for one in others))]


def summed(remarks: Iterable[Remark]) -> list[Remark]:
    """One remark per text, the most frequent first, with the first example.

    Those that count nothing are left out.
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
    """A line each; of more than `most`, the last says how many others the command shows."""
    if len(remarks) <= most:
        return [str(remark) for remark in remarks]
    others = f"{len(remarks) - most + 1} other remarks" + (
        f"; `{command}` lists them" if command else ""
    )
    return [*map(str, remarks[: most - 1]), others]


def say_remarks(remarks: Sequence[Remark]) -> None:
    """Print what a source found and does not use, a line each, as far as they are few."""
    for text in list_remarks(remarks, MOST_SAID):
        print(f"note: {text}", file=sys.stderr, flush=True)


def _checked(remark: object, source: object) -> Remark:
    if not isinstance(remark, Remark):
        raise PluginError(f"{type(source).__name__}.remarks() gave {remark!r}, expected a Remark")
    if not remark.text or "\n" in remark.text or remark.count < 0:
        expected = "expected a text of one line and a count from 0 on"
        raise PluginError(f"{type(source).__name__}.remarks() gave {remark!r}, {expected}")
    # Names of files may hold bytes that are no UTF-8, which dataset.json couldn't.
    text, example = (
        part.encode("utf-8", "backslashreplace").decode() for part in (remark.text, remark.example)
    )
    return Remark(text, remark.count, example)

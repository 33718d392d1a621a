"""Captions as trainers read them."""

from __future__ import annotations

from collections.abc import Iterable

from latentkit.contracts import ExportItem


def caption_of(item: ExportItem, attribute: str) -> str:
    """Return a sample's caption on one line, as trainers take a line for a caption of its own;
    empty where there is none, the first of several.
    """
    value = item.attributes.get(attribute)
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else " ".join(str(value).splitlines())


def remark_on(captions: Iterable[str], attribute: str) -> list[str]:
    """Return a comment for the trainer's configuration where every caption is empty."""
    if any(captions):
        return []
    return [f"# no sample has a caption in {attribute!r}: name its attribute with caption=NAME"]

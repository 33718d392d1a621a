"""Reads colors and orientations from files made of boxes: AVIF and HEIC (ISO 14496-12, 23008-12),
and JPEG 2000 (ISO 15444-1, annex I).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ColorBox:
    """Content of a `colr` box.

    Args:
        profile: ICC profile; empty if there is none.
        codes: primaries and transfer characteristics as in ITU-T H.273; None if there are none.
        space: enumerated color space of JPEG 2000; None if there is none.
    """

    profile: bytes = b""
    codes: tuple[int, int] | None = None
    space: int | None = None


def walk_boxes(media: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and content of every box in order, up to a box whose size is invalid."""
    at = 0
    while at + 8 <= len(media):
        size, name = struct.unpack_from(">I4s", media, at)
        head = 8
        if size == 1 and at + 16 <= len(media):
            size, head = struct.unpack_from(">Q", media, at + 8)[0], 16
        elif size == 0:
            size = len(media) - at
        if size < head:
            return
        yield name, media[at + head : at + size]
        at += size


def find_box(media: bytes, *path: bytes) -> bytes:
    """Return the content of the first box at this path of box types; empty if there is none."""
    for name in path:
        media = next((content for found, content in walk_boxes(media) if found == name), b"")
        if name == b"meta":
            media = media[4:]  # version and flags
    return media


def primary_properties(media: bytes) -> list[tuple[bytes, bytes]]:
    """Return the type and content of the properties of an AVIF or HEIC file's main image.

    Broken boxes give nothing. The decoder then reports whether the pixels are broken too.
    """
    try:
        return _read_properties(find_box(media, b"meta"))
    except (struct.error, IndexError):
        return []


def _read_properties(meta: bytes) -> list[tuple[bytes, bytes]]:
    """Return the type and content of the main item's properties in a `meta` box."""
    number = find_box(meta, b"pitm")
    primary = struct.unpack_from(">H" if number[0] == 0 else ">I", number, 4)[0]
    properties = list(walk_boxes(find_box(meta, b"iprp", b"ipco")))
    for name, table in walk_boxes(find_box(meta, b"iprp")):
        if name == b"ipma":
            for item, indices in _associations(table):
                if item == primary:
                    return [properties[index - 1] for index in indices if index]
    return []


def _associations(table: bytes) -> Iterator[tuple[int, list[int]]]:
    """Yield each item with the numbers of its properties, starting at 1 (ISO 23008-12, 9.3.1)."""
    version, flags, count = table[0], table[3], struct.unpack_from(">I", table, 4)[0]
    at = 8
    for _ in range(count):
        item = struct.unpack_from(">I" if version else ">H", table, at)[0]
        at += 4 if version else 2
        size = 2 if flags & 1 else 1
        indices = [
            int.from_bytes(table[at + 1 + size * place : at + 1 + size * (place + 1)], "big")
            & (0x7FFF if size == 2 else 0x7F)
            for place in range(table[at])
        ]
        at += 1 + size * len(indices)
        yield item, indices


def read_color(content: bytes, is_jpeg2000: bool) -> ColorBox:
    """Read a `colr` box. A box that is cut off gives an empty `ColorBox`."""
    if len(content) < (7 if is_jpeg2000 else 8):
        return ColorBox()
    if is_jpeg2000:
        if content[0] == 1:
            return ColorBox(space=struct.unpack_from(">I", content, 3)[0])
        return ColorBox(profile=content[3:])
    if content[:4] == b"nclx":
        return ColorBox(codes=struct.unpack_from(">HH", content, 4))
    return ColorBox(profile=content[4:])

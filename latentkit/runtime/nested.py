"""Flattens and compares nested mappings, by dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and value of everything that isn't a mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{start}{name}.")
        else:
            yield start + name, value


def find_differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield a line, with its dotted key, for each value that has changed.

    Args:
        before, now: JSON-like values; lists of equal length are compared item by item.
        where: key of both values; "" for the outermost.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in {**before, **now}:
            below = f"{where}.{key}" if where else key
            yield from find_differences(before.get(key), now.get(key), below)
    elif _is_list(before) and _is_list(now) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from find_differences(*pair, f"{where}[{number}]")
    elif before != now:
        yield f"{where} was {before!r} and is {now!r}"


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)

"""Values in mappings of mappings, by their dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flatten(values: Mapping[str, Any], start: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of all that isn't itself a mapping."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{start}{name}.")
        else:
            yield start + name, value


def find_differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """Yield a line per value that isn't what it was, with its dotted key.

    Args:
        before, now: JSON-like; lists of one length are compared value by value.
        where: key of both; "" for the outermost.
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

"""Single keys of a recipe set from the command line or Python, and what a path in a recipe is
relative to.

A path in a recipe starts from the recipe's folder, a typed one from the working directory.
`output.path` is always a path. Under `with:`, the keys of `PATH_KEYS` hold one when
`find_local_path` says so; any other key is the plugin's own affair.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from latentkit.errors import RecipeError
from latentkit.runtime.key_errors import join_key
from latentkit.runtime.paths import SEPARATOR, find_local_path, is_url
from latentkit.runtime.yaml_files import parse_yaml

Overrides = Sequence[str] | Mapping[str, Any]
"""`KEY=VALUE` texts as typed after `--set`, or values by dotted key."""

PATH_KEYS = ("path", "model", "config", "heads", "features")

_KEY = re.compile(
    r"NAME(INDEX)*(\.NAME(INDEX)*)*".replace("NAME", r"[^.\[\]=\s]+").replace("INDEX", r"\[\d+\]")
)


def resolve_beside(url: str, path: str) -> str:
    """Return an `output.path` of the recipe at `url`; relative ones start from its folder."""
    if is_url(path) or path.startswith(("/", "~")) or os.path.isabs(path):
        return path
    scheme, _, place = url.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}"


def anchor(value: Any, key: tuple[str | int, ...], base: Path) -> Any:
    """Return the value at `key` of a recipe, its local paths made absolute from `base`."""
    if isinstance(value, Mapping):
        return {name: anchor(part, (*key, name), base) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [anchor(part, (*key, number), base) for number, part in enumerate(value)]
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text:
        return text
    if key == ("output", "path"):
        return text if is_url(text) else os.path.abspath(base / os.path.expanduser(text))
    name = next(
        part for part in reversed(key) if isinstance(part, str)
    )  # of a list of paths, the list's
    if "with" in key[:-1] and name in PATH_KEYS:
        if SEPARATOR in text and not is_url(text) and not (base / text).exists():
            return SEPARATOR.join(_anchor_part(part, base) for part in text.split(SEPARATOR))
        return str(find_local_path(text, base) or text)
    return text


def _anchor_part(text: str, base: Path) -> str:
    """One of several files in a text, which are paths, whether they are there or not."""
    return text if is_url(text) else os.path.abspath(base / os.path.expanduser(text))


def split_overrides(overrides: Overrides) -> Iterator[tuple[str, Any]]:
    """Key and value of each override, in order; the value of a text is read as YAML.

    Raises:
        RecipeError: a text is not KEY=VALUE, or its value is not YAML.
        TypeError: one text instead of a list of them.
    """
    if isinstance(overrides, str):
        raise TypeError(
            "overrides must be a list of 'key=value' texts or a mapping, got the text"
            f" {overrides!r}"
        )
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals:
            raise RecipeError(
                f"override {text!r}: expected KEY=VALUE, such as encoder.with.dtype=bfloat16"
            )
        yield key.strip(), parse_yaml(value, f"override {text!r}")


def apply_override(values: dict[str, Any], key: str, value: Any) -> None:
    """Put `value` at a key such as "losses[1].weight"; missing mappings are made.

    Raises:
        RecipeError: the key is not one, an index is out of range, or the key leads through
            something that holds no keys.
    """
    if not _KEY.fullmatch(key):
        raise RecipeError(
            f"override {key!r}: expected a key such as encoder.with.dtype or losses[1].weight"
        )
    path = tuple(name or int(index) for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key))
    target: Any = values
    for depth, (part, following) in enumerate(pairwise(path)):
        _check_holds(target, path[: depth + 1], key)
        if isinstance(part, str) and isinstance(following, str) and target.get(part) is None:
            target[part] = {}
        target = target[part] if isinstance(part, int) else target.get(part)
    _check_holds(target, path, key)
    target[path[-1]] = anchor(value, path, Path.cwd())


def _check_holds(target: Any, path: tuple[str | int, ...], key: str) -> None:
    """Refuse a `target` that can't hold the last part of `path`."""
    *above, last = path
    where = f"override {key!r}: {join_key(above) or 'the recipe'}"
    wanted, kind = ("list", list) if isinstance(last, int) else ("mapping", dict)
    if not isinstance(target, kind):
        found = {dict: "a mapping", list: "a list", type(None): "missing"}.get(
            type(target), repr(target)
        )
        raise RecipeError(f"{where} is {found}, expected a {wanted}")
    if isinstance(last, int) and last >= len(target):
        raise RecipeError(
            f"{where} has {len(target)} entries, [0] to [{len(target) - 1}]; got [{last}]"
        )

"""Override single keys of a recipe from the command line or Python, and make its paths absolute.

A path in a recipe is relative to the recipe's folder; a path in an override, to the working
directory. `output.path` is always a path. Under `with:`, a key of `PATH_KEYS` holds a path if
`find_local_path` finds one there; the plugin resolves every other key itself.
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


def resolve_output_path(url: str, path: str) -> str:
    """Return an `output.path` of the recipe at `url`; relative paths start from its folder."""
    if is_url(path) or path.startswith(("/", "~")) or os.path.isabs(path):
        return path
    scheme, _, place = url.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join(posixpath.dirname(place), path))}"


def make_paths_absolute(value: Any, key: tuple[str | int, ...], base: Path) -> Any:
    """Return the value at `key` of a recipe with its local paths made absolute, from `base`."""
    if isinstance(value, Mapping):
        return {name: make_paths_absolute(part, (*key, name), base) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        numbered = enumerate(value)
        return [make_paths_absolute(part, (*key, number), base) for number, part in numbered]
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text:
        return text
    if key == ("output", "path"):
        return text if is_url(text) else os.path.abspath(base / os.path.expanduser(text))
    # for a path in a list, this is the key of the list
    name = next(part for part in reversed(key) if isinstance(part, str))
    if "with" in key[:-1] and name in PATH_KEYS:
        if SEPARATOR in text and not is_url(text) and not (base / text).exists():
            return SEPARATOR.join(_absolute_path(part, base) for part in text.split(SEPARATOR))
        return str(find_local_path(text, base) or text)
    return text


def _absolute_path(text: str, base: Path) -> str:
    """Return one of several file names in a text as an absolute path; a URL is kept."""
    return text if is_url(text) else os.path.abspath(base / os.path.expanduser(text))


def split_overrides(overrides: Overrides) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each override, in order; the value of a text is parsed as YAML.

    Raises:
        RecipeError: a text is not KEY=VALUE, or its value is not YAML.
        TypeError: `overrides` is a single text, not a list of texts.
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
    """Set the value at a key such as "losses[1].weight"; missing mappings are created.

    Raises:
        RecipeError: the key is malformed, an index is out of range, or a part of the key stands
            for a value that is neither a mapping nor a list.
    """
    if not _KEY.fullmatch(key):
        raise RecipeError(
            f"override {key!r}: expected a key such as encoder.with.dtype or losses[1].weight"
        )
    path = tuple(name or int(index) for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", key))
    target: Any = values
    for depth, (part, following) in enumerate(pairwise(path)):
        _check_container(target, path[: depth + 1], key)
        if isinstance(part, str) and isinstance(following, str) and target.get(part) is None:
            target[part] = {}
        target = target[part] if isinstance(part, int) else target.get(part)
    _check_container(target, path, key)
    target[path[-1]] = make_paths_absolute(value, path, Path.cwd())


def _check_container(target: Any, path: tuple[str | int, ...], key: str) -> None:
    """Raise RecipeError unless `target` is a list or mapping that takes the last part of `path`."""
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

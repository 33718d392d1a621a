"""YAML as recipes use it: scalars of YAML 1.2, text keys, and no features that hide what a file
says.

PyYAML reads YAML 1.1, where `no` is false, `1e-6` is text and `1:30` is ninety. Here scalars follow
the core schema of YAML 1.2.2 (section 10.3.2). Repeated keys, anchors, aliases, merge keys, tags
and further documents are errors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode

from latentkit.errors import RecipeError

_NULL, _BOOL, _INT, _FLOAT = (
    f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")
)

# tag, pattern, characters a match may start with ("" for the empty scalar); the first that fits
# wins
_CORE_SCHEMA: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (_NULL, r"null|Null|NULL|~|", ("n", "N", "~", "")),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the rules of this module."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own name for it; filled below)

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        parser: Any = self
        event = parser.peek_event()
        if isinstance(event, AliasEvent) or event.anchor:
            problem = "anchors and aliases (& and *) are not allowed; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        if event.tag:
            raise yaml.MarkedYAMLError(
                problem=f"tags are not allowed, got {event.tag!r}", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: dict[Any, int] = {}
        for key_node, _ in node.value:
            _check_key(key_node, keys)
            keys[key_node.value] = key_node.start_mark.line
        return super().construct_mapping(node, deep=deep)


def _check_key(node: Node, seen: Mapping[str, int]) -> None:
    """Check that a key is a text that doesn't occur twice."""
    problem = None
    if not isinstance(node, ScalarNode) or node.tag != "tag:yaml.org,2002:str":
        shown = repr(node.value) if isinstance(node, ScalarNode) else "a list or a mapping"
        problem = f"a key must be text, got {shown}"
    elif node.value == "<<":
        problem = "merge keys (<<) are not allowed; write the values out"
    elif node.value in seen:
        problem = f"key {node.value!r} is repeated, first given on line {seen[node.value] + 1}"
    if problem:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _construct_int(loader: _Loader, node: ScalarNode) -> int:
    text = str(node.value)
    try:
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    except ValueError as err:  # more digits than Python converts
        raise yaml.MarkedYAMLError(
            problem=f"a number of {len(text)} digits is too long", problem_mark=node.start_mark
        ) from err


def _construct_float(loader: _Loader, node: ScalarNode) -> float:
    return float(str(node.value).lower().replace(".inf", "inf").replace(".nan", "nan"))


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that `_Loader` would read as something else; writes no alias."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own name for it; filled below)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> ScalarNode:
    # PyYAML folds the line breaks that are not ASCII as if they were spaces; only double quotes
    # keep them
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if re.search("[\x85\u2028\u2029]", text) else None
    )


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor(_INT, _construct_int)
_Loader.add_constructor(_FLOAT, _construct_float)
_Dumper.add_representer(str, _represent_text)


def read_yaml(path: Path | str) -> Any:
    """Return the value in a YAML file at a path or URL; None for an empty file.

    Raises:
        RecipeError: the file is missing, can't be read, isn't UTF-8 text, or breaks a rule of this
            module; the message names file and line.
    """
    try:
        content = path.read_bytes() if isinstance(path, Path) else _read_url(path)
        text = content.decode("utf-8-sig")
    except FileNotFoundError as err:
        raise RecipeError(f"{path}: no such file") from err
    except IsADirectoryError as err:
        inside = Path(path) / "recipe.yaml"
        hint = f", did you mean {inside}?" if os.path.isfile(inside) else ""
        raise RecipeError(f"{path} is a folder, expected a YAML file{hint}") from err
    except OSError as err:
        raise RecipeError(f"{path}: can't be read: {err.strerror or err}") from err
    except UnicodeDecodeError as err:
        line = err.object[: err.start].count(b"\n") + 1
        raise RecipeError(
            f"{path}, line {line}: not UTF-8 text: byte {err.object[err.start]:#04x}; save the file"
            " as UTF-8"
        ) from err
    return parse_yaml(text, str(path))


def _read_url(url: str) -> bytes:
    """Return the bytes of a file at a URL."""
    import fsspec

    try:
        driver, path = fsspec.url_to_fs(url)
        return bytes(driver.cat_file(path))
    except OSError:
        raise
    except Exception as err:  # a driver may raise anything
        raise RecipeError(f"{url}: can't be read: {type(err).__name__}: {err}") from err


def parse_yaml(text: str, origin: str) -> Any:
    """Return the value in a YAML text; None for an empty one. `origin` names the text in errors.

    Raises:
        RecipeError: the text isn't YAML or breaks a rule of this module; the message names origin
            and line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as err:
        line = f", line {err.problem_mark.line + 1}" if err.problem_mark else ""
        raise RecipeError(f"{origin}{line}: {_explain(err)}") from err
    except yaml.reader.ReaderError as err:
        line = f", line {text[: err.position].count(chr(10)) + 1}"
        raise RecipeError(
            f"{origin}{line}: character {err.character:#06x} is not allowed in YAML"
        ) from err
    except RecursionError as err:
        raise RecipeError(f"{origin}: lists or mappings are nested too deeply") from err


def _explain(error: yaml.MarkedYAMLError) -> str:
    """Return PyYAML's problem, in plainer words if its own are misleading."""
    problem = error.problem or str(error)
    if r"'\t'" in problem:
        return "a tab; YAML takes only spaces for indentation and between values"
    if "expected a single document" in (error.context or ""):
        return "a second document (---); a recipe is one document"
    return f"not valid YAML: {problem}" if type(error) is not yaml.MarkedYAMLError else problem


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return plain values as YAML text that `parse_yaml` reads back unchanged. Keys stay in order;
    innermost lists and mappings are on one line.
    """
    return yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        default_flow_style=None,
        allow_unicode=True,
        width=120,
    )

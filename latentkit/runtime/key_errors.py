"""Validates plain values with a pydantic model, and turns pydantic's errors into lines that a
recipe's author can act on.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from latentkit.errors import RecipeError

M = TypeVar("M", bound=BaseModel)
KeyPath = tuple[str | int, ...]

SHOWN_CHARACTERS = 60

# pydantic's error type to what was expected, filled from the error's context
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "greater_than_equal": "a number of at least {ge}",
    "greater_than": "a number above {gt}",
    "less_than_equal": "a number of at most {le}",
    "less_than": "a number below {lt}",
    "too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question such as ", did you mean 'x'?" with the nearest of `known`; empty if none is
    similar.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def join_key(path: Sequence[str | int], start: str = "") -> str:
    """Return a key path as recipes write it: ("losses", 1, "use") is "losses[1].use"."""
    text = start
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def validate(model: type[M], values: Mapping[str, Any], origin: str = "", where: str = "") -> M:
    """Build `model` from plain values (as in YAML or JSON), strictly: "8" is not 8, and true is not
    1.

    Args:
        values: the values; paths are given as text.
        origin: file with the values, which starts every line of an error.
        where: key of the values, such as "losses[1].with".

    Raises:
        RecipeError: one line per problem: origin, key, expected and got, and a similar known key
            or value.
    """
    prefix = f"{origin}: " if origin else ""
    try:
        text = json.dumps(values, default=os.fspath)
    except (TypeError, ValueError) as err:
        raise RecipeError(
            f"{prefix}{where + ': ' if where else ''}expected numbers, texts, lists and mappings:"
            f" {err}"
        ) from err
    try:
        return model.model_validate_json(text, strict=True)
    except ValidationError as err:
        lines = _explain(err, model, json.loads(text), where)
        raise RecipeError("\n".join(prefix + line for line in lines)) from err


def _explain(error: ValidationError, model: type[BaseModel], values: Any, where: str) -> list[str]:
    """Return one line per key with a problem. Errors from the branches of a union on the same key
    are combined.
    """
    found: dict[KeyPath, list[Mapping[str, Any]]] = {}
    for problem in error.errors(include_url=False):
        found.setdefault(_key_path(problem["loc"], values, problem["type"]), []).append(
            dict(problem)
        )
    lines = []
    for path, problems in found.items():
        if any(other[: len(path)] == path and len(other) > len(path) for other in found):
            continue  # another branch of a union explains it better
        key = join_key(path, where)
        lines.append((f"{key}: " if key else "") + _describe(problems, model, path))
    return lines


def _key_path(location: Sequence[str | int], values: Any, kind: str) -> KeyPath:
    """Return the location without the names that pydantic adds for the branches of a union."""
    path: list[str | int] = []
    for number, part in enumerate(location):
        is_last = number == len(location) - 1
        if part in (
            values
            if isinstance(values, Mapping)
            else range(len(values) if isinstance(values, list) else 0)
        ):
            values = values[part]
        elif not (is_last and kind == "missing"):
            continue
        path.append(part)
    return tuple(path)


def _describe(problems: Sequence[Mapping[str, Any]], model: type[BaseModel], path: KeyPath) -> str:
    """Describe the problems of one key."""
    first = problems[0]
    if first["type"] == "extra_forbidden":
        known = sorted(_fields_at(model, path[:-1]))
        name = str(path[-1])
        return "unknown key" + (
            suggest(name, known)
            or (f"; known: {', '.join(known)}" if known else "; this one takes no keys")
        )
    if first["type"] == "missing":
        info = _fields_at(model, path[:-1]).get(str(path[-1]))
        return f"missing; expected {info.description}" if info and info.description else "missing"
    if first["type"] == "json_invalid":
        return "contains text that is not valid Unicode, such as a file name that is not UTF-8"
    if "error" in first.get("ctx", {}):
        return f"{first['ctx']['error']}{_got(first['input'])}"
    wanted = " or ".join(dict.fromkeys(_expected(problem) for problem in problems))
    choices = [
        choice
        for problem in problems
        for choice in re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
    ]
    near = suggest(first["input"], choices) if isinstance(first["input"], str) else ""
    return f"expected {wanted}{_got(first['input'], short=False)}{near}"


def _expected(problem: Mapping[str, Any]) -> str:
    """Return what a problem's value should be."""
    if problem["type"] in _EXPECTED:
        return _EXPECTED[problem["type"]].format(**problem.get("ctx", {}))
    message = str(problem["msg"])
    start = "Input should be "
    return (
        message.removeprefix(start) if message.startswith(start) else f"another value ({message})"
    )


def _got(value: Any, short: bool = True) -> str:
    """Return the end of a line, such as ", got 3"; empty for a whole mapping if `short`."""
    if short and isinstance(value, Mapping):
        return ""
    shown = (
        repr(value)
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str)
    )
    return f", got {shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + '...'}"


def _fields_at(annotation: Any, path: KeyPath) -> dict[str, FieldInfo]:
    """Return the fields, by their names in recipes, of every model that may be at `path` below
    `annotation`.
    """
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {info.alias or name: info for name, info in annotation.model_fields.items()}
        if not path:
            return fields
        return _fields_at(fields[str(path[0])].annotation, path[1:]) if path[0] in fields else {}
    is_container = get_origin(annotation) in (list, tuple, dict)
    if is_container and not path:
        return {}
    below = path[1:] if is_container else path
    return {
        name: info
        for part in get_args(annotation)
        for name, info in _fields_at(part, below).items()
    }

"""What of a latent dataset tells about the machine that made it: absolute paths, and logins in
URLs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.compute as pc

from latentkit.runtime.paths import SEPARATOR, is_url

ABSOLUTE = re.compile(r"(file://|local://)?(/+[^/]|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\)")
PATH_IN_COLUMN = r"^(file://|~/|[A-Za-z]:\\|(/[^/\s]+){2})"
"""Stricter, because a caption may begin with a slash."""


def find_private_texts(value: Any) -> dict[str, str]:
    """Return every absolute path, and every URL with a login or a query, in a document of JSON or
    YAML, with what is published instead: "./" and a path's last name, or the URL without both.
    """
    return {
        part: public
        for text in _texts(value)
        for part in text.split(SEPARATOR)
        if (public := _public_text(part)) != part
    }


def hide_texts(value: Any, hidden: Mapping[str, str]) -> Any:
    """Return a document with other texts for those in `hidden`, wherever they occur in it."""
    if isinstance(value, Mapping):
        return {key: hide_texts(part, hidden) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [hide_texts(part, hidden) for part in value]
    if not isinstance(value, str):
        return value
    for private in sorted(hidden, key=len, reverse=True):
        pattern = rf"(?<![\w./\\-]){re.escape(private)}(?![\w.-])"
        value = re.sub(pattern, hidden[private].replace("\\", r"\\"), value)
    return value


def find_path_columns(index: pa.Table) -> dict[str, str]:
    """Return the columns of an index that contain absolute paths, each with the first of them."""
    columns = {"key": index["key"]}
    attributes = index["attributes"]
    if pa.types.is_struct(attributes.type):
        columns |= {
            field.name: pc.struct_field(attributes, field.name) for field in attributes.type
        }
    found = {}
    for name, column in columns.items():
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            paths = column.filter(pc.match_substring_regex(column, PATH_IN_COLUMN))
            if len(paths):
                found[name] = paths[0].as_py()
    return found


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _public_text(text: str) -> str:
    if ABSOLUTE.match(text):
        path = PureWindowsPath(text) if "\\" in text or text[1:2] == ":" else PurePosixPath(text)
        return f"./{path.name}" if path.name else "."
    if is_url(text):
        parts = urlsplit(text)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return text

"""Decides which columns of a dataset are media, attributes and key, and converts a row's cells."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import fsspec
import pyarrow as pa

from latentkit.contracts import Remark
from latentkit.errors import SourceError

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

KEY_COLUMN = "__key__"
WEBDATASET_COLUMNS = (KEY_COLUMN, "__url__")

UNUSUAL_TYPES = (
    "columns that aren't texts, numbers, labels or lists of them, not read unless"
    " source.with.attributes names them"
)

SCALAR_TYPES = re.compile(r"bool|u?int\d+|float\d+|(large_)?string")


@dataclass(frozen=True)
class Columns:
    """The purpose of each column. Other columns are never read.

    Args:
        media: the column with the media.
        key: the column with the key, or None.
        attributes: the columns kept as attributes, each with its label names, or None if it has no
            labels.
    """

    media: str
    key: str | None
    attributes: Mapping[str, list[str] | None]

    def names(self) -> list[str]:
        """Return all columns that are read."""
        return [self.media, *(name for name in self.names_but_media() if name != self.media)]

    def names_but_media(self) -> list[str]:
        """Return the columns that entries need."""
        return list(dict.fromkeys([*([] if self.key is None else [self.key]), *self.attributes]))

    def media_of(self, row: Mapping[str, Any]) -> bytes | str | Path:
        """Return a row's undecoded media. An empty cell gives empty bytes, which every modality
        refuses.

        Raises:
            OSError: the media is in a remote file or an archive that can't be reached.
        """
        cell = row[self.media]
        if isinstance(cell, Mapping):
            path = cell["path"]
            if cell["bytes"] is None and path and "://" in path:
                with fsspec.open(path, "rb") as file:
                    return bytes(file.read())
            cell = Path(path) if cell["bytes"] is None and path else cell["bytes"]
        media: bytes | str | Path = b"" if cell is None else cell
        return media

    def attributes_of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row's attributes: labels as their names, nested values as JSON text."""
        return {name: _attribute(row[name], labels) for name, labels in self.attributes.items()}


def choose_columns(features: datasets.Features, config: DatasetsConfig) -> Columns:
    """Choose the purpose of each column as the recipe says, or else by its type.

    Raises:
        SourceError: there is no media column, or several, or a named column is missing or
            unusable; the message lists the columns with their types.
    """
    known = "; its columns: " + ", ".join(
        f"{name} ({_type_name(feature)})" for name, feature in features.items()
    )
    media = _media_column(features, config.media, known)
    key = config.key or (KEY_COLUMN if KEY_COLUMN in features else None)
    if key is not None and key not in features:
        raise SourceError(f"source datasets: no column {key!r} for the key{known}")
    if config.attributes is None:
        others = {
            name: feature
            for name, feature in features.items()
            if name not in (media, key, *WEBDATASET_COLUMNS)
        }
        names = [
            name
            for name, feature in others.items()
            if _is_scalar(feature) or _is_scalar(_item(feature))
        ]
    else:
        names = config.attributes
    for name in names:
        if name not in features or _is_media(features[name]):
            what = "contains media, not an attribute" if name in features else "is not there"
            raise SourceError(f"source datasets: attributes: the column {name!r} {what}{known}")
    return Columns(media, key, {name: _labels(features[name]) for name in names})


def remark_unused_columns(
    features: datasets.Features, columns: Columns, config: DatasetsConfig
) -> list[Remark]:
    """Return remarks on columns that aren't read. There are none if the recipe names attributes."""
    if config.attributes is not None:
        return []
    read = {*columns.names(), *WEBDATASET_COLUMNS}
    others = [name for name in features if name not in read]
    media = [name for name in others if _is_media(features[name])]
    kinds = {
        "columns with other media, not read": media,
        UNUSUAL_TYPES: [name for name in others if name not in media],
    }
    return [Remark(text, len(names), ", ".join(names)) for text, names in kinds.items() if names]


def _media_column(features: datasets.Features, wanted: str | None, known: str) -> str:
    """Return the column that the recipe names, or else the only one with media."""
    if wanted is not None:
        if wanted not in features or not (
            _is_media(features[wanted]) or _is_text(features[wanted])
        ):
            what = "contains neither media nor text" if wanted in features else "is not there"
            raise SourceError(f"source datasets: media: the column {wanted!r} {what}{known}")
        return wanted
    found: list[str] = [name for name, feature in features.items() if _is_media(feature)]
    if len(found) != 1:
        what = (
            f"several columns contain media ({', '.join(found)})"
            if found
            else "no column contains images, audio, video or bytes"
        )
        raise SourceError(f"source datasets: {what}; name one in source.with.media{known}")
    return found[0]


# ---------------------------------------------------------------- types


def _is_media(feature: Any) -> bool:
    """Return whether a column contains files: bytes, or the bytes and path of an image, audio,
    video or similar.
    """
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    if isinstance(feature, Mapping):  # a table without the library's metadata
        return set(feature) == {"bytes", "path"} and _is_media(feature["bytes"])
    storage = getattr(feature, "pa_type", None)
    return (
        pa.types.is_struct(storage) and {field.name for field in storage} == {"bytes", "path"}
        if storage is not None
        else False
    )


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_scalar(feature: Any) -> bool:
    is_value = (
        isinstance(feature, datasets.Value) and SCALAR_TYPES.fullmatch(feature.dtype) is not None
    )
    return is_value or isinstance(feature, datasets.ClassLabel)


def _item(feature: Any) -> Any:
    """Return the type of a list's items; None for anything else."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _labels(feature: Any) -> list[str] | None:
    """Return the label names of a column, or None if it has none."""
    label = feature if isinstance(feature, datasets.ClassLabel) else _item(feature)
    return list(label.names) if isinstance(label, datasets.ClassLabel) else None


def _type_name(feature: Any) -> str:
    """Return a column's type for messages."""
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    item = _item(feature)
    return str(type(feature).__name__) if item is None else f"list of {_type_name(item)}"


# ---------------------------------------------------------------- cells


def _attribute(cell: Any, labels: list[str] | None) -> Any:
    """Return a cell as an attribute: labels by name, nested values as JSON text."""
    if labels is not None:
        return (
            [_label(number, labels) for number in cell]
            if isinstance(cell, list)
            else _label(cell, labels)
        )
    if _is_plain(cell) or (isinstance(cell, list) and all(_is_plain(item) for item in cell)):
        return cell
    return (
        json.dumps(cell, ensure_ascii=False, default=str)
        if isinstance(cell, (Mapping, list))
        else str(cell)
    )


def _label(number: int | None, labels: list[str]) -> str | None:
    """Return the name of a label; None for -1, with which the library marks a missing label."""
    return None if number is None or number < 0 else labels[number]


def _is_plain(cell: Any) -> bool:
    return cell is None or isinstance(cell, (bool, int, float, str))

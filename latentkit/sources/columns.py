"""Which columns of a data set are media, attributes and key, and what a row's cells become."""

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

from latentkit.errors import SourceError

if TYPE_CHECKING:
    from latentkit.sources.options import DatasetsConfig

KEY_COLUMN = "__key__"
WEBDATASET_COLUMNS = (KEY_COLUMN, "__url__")

SCALAR_TYPES = re.compile(r"bool|u?int\d+|float\d+|(large_)?string")


@dataclass(frozen=True)
class Columns:
    """What each column is for; the rest is never read.

    Args:
        media: the column with the media.
        key: the column with the key; None: there is none.
        attributes: the columns kept as attributes, each with the names of its labels, or None where
            it has none.
    """

    media: str
    key: str | None
    attributes: Mapping[str, list[str] | None]

    def names(self) -> list[str]:
        """All columns that are read."""
        return [self.media, *(name for name in self.names_but_media() if name != self.media)]

    def names_but_media(self) -> list[str]:
        """The columns that entries need."""
        return list(dict.fromkeys([*([] if self.key is None else [self.key]), *self.attributes]))

    def media_of(self, row: Mapping[str, Any]) -> bytes | str | Path:
        """A row's undecoded media; an empty cell is no bytes, which no modality takes for a sample.

        Raises:
            OSError: it is in a remote file or an archive that can't be reached.
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
        """A row's attributes: labels by name, nested values as JSON text."""
        return {name: _attribute(row[name], labels) for name, labels in self.attributes.items()}


def choose_columns(features: datasets.Features, config: DatasetsConfig) -> Columns:
    """What the columns of a data set are for, by the recipe, else by their types.

    Raises:
        SourceError: no media column, several, or a column that isn't there or of no use; lists the
            columns with their types.
    """
    known = "; its columns: " + ", ".join(
        f"{name} ({_type_name(feature)})" for name, feature in features.items()
    )
    media = _media_column(features, config.media, known)
    key = config.key or (KEY_COLUMN if KEY_COLUMN in features else None)
    if key is not None and key not in features:
        raise SourceError(f"source datasets: there is no column {key!r} for the key{known}")
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
            what = "holds media, not an attribute" if name in features else "is not there"
            raise SourceError(f"source datasets: attributes: the column {name!r} {what}{known}")
    return Columns(media, key, {name: _labels(features[name]) for name in names})


def _media_column(features: datasets.Features, wanted: str | None, known: str) -> str:
    if wanted is not None:
        if wanted not in features or not (
            _is_media(features[wanted]) or _is_text(features[wanted])
        ):
            what = "holds neither media nor text" if wanted in features else "is not there"
            raise SourceError(f"source datasets: media: the column {wanted!r} {what}{known}")
        return wanted
    found: list[str] = [name for name, feature in features.items() if _is_media(feature)]
    if len(found) != 1:
        what = (
            f"several columns hold media ({', '.join(found)})"
            if found
            else "no column holds images, audio, video or bytes"
        )
        raise SourceError(f"source datasets: {what}; name one in source.with.media{known}")
    return found[0]


# ---------------------------------------------------------------- types


def _is_media(feature: Any) -> bool:
    """Return whether a column holds files: bytes, or bytes and path of media."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    if isinstance(feature, Mapping):  # a table written without the library's own metadata
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
    """The type of a list's items; None for anything else."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _labels(feature: Any) -> list[str] | None:
    label = feature if isinstance(feature, datasets.ClassLabel) else _item(feature)
    return list(label.names) if isinstance(label, datasets.ClassLabel) else None


def _type_name(feature: Any) -> str:
    if isinstance(feature, datasets.Value):
        return str(feature.dtype)
    item = _item(feature)
    return str(type(feature).__name__) if item is None else f"list of {_type_name(item)}"


# ---------------------------------------------------------------- cells


def _attribute(cell: Any, labels: list[str] | None) -> Any:
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
    """The name of a label; None where a row has none, which the library writes as -1."""
    return None if number is None or number < 0 else labels[number]


def _is_plain(cell: Any) -> bool:
    return cell is None or isinstance(cell, (bool, int, float, str))

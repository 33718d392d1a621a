"""Captions that lie in a file beside their media, and what of a row or a JSON object is the
caption.

Where a file has several, this order decides, for each of its attributes: a table's row; `name.txt`,
`name.caption`, `name.jpg.txt`, `name.jpg.caption`; `name.json`, `name.jpg.json`.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latentkit.errors import SampleError
from latentkit.sources.encodings import UnknownEncodingError, decode_text
from latentkit.sources.files import Files
from latentkit.sources.table_rows import plain

TEXT_ENDINGS = (".txt", ".caption")
RECORD_ENDING = ".json"
CAPTION_COLUMNS = (
    "text",
    "caption",
    "prompt",
    "description",
    "txt",
    "captions",
    "prompts",
    "sentence",
    "sentences",
    "transcript",
    "transcription",
    "caption_text",
    "long_caption",
    "alt_text",
    "comment",
    "tags",
)
"""Names of what becomes the attribute "text", in any case; the first that a row has."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Paths of a text and of a JSON object with the caption of media; "" where none is."""

    text: str = ""
    record: str = ""


NOTHING_BESIDE = Beside()


class Sidecars:
    """The captions that lie beside media.

    Args:
        stems: path of each file of media, to the path without its ending.
        others: paths of the files that are no media.
    """

    def __init__(self, stems: Mapping[str, str], others: Iterable[str]) -> None:
        self.passed_over: list[str] = []
        """Captions of media that have another, which wins."""
        self.unused: list[str] = []
        """Captions that lie beside no media."""
        self._of: dict[str, list[str]] = {}
        captions = sorted(
            path for path in others if path.lower().endswith((*TEXT_ENDINGS, RECORD_ENDING))
        )
        names = (
            {normal_form(name) for pair in stems.items() for name in pair} if captions else set()
        )
        named = {path: normal_form(path[: path.rindex(".")]) for path in captions}
        folded: dict[str, list[str]] = {}
        for name in names if any(name not in names for name in named.values()) else ():
            folded.setdefault(name.casefold(), []).append(name)
        for path, name in named.items():
            owners = [name] if name in names else folded.get(name.casefold(), [])
            if len(owners) == 1:
                self._of.setdefault(owners[0], []).append(path)
            else:
                self.unused.append(path)

    def of(self, path: str, stem: str) -> Beside:
        """What lies beside the media at `path`, which is `stem` with its ending."""
        candidates = [*self._sorted(stem), *self._sorted(path)]
        if not candidates:
            return NOTHING_BESIDE
        texts = [one for one in candidates if not one.lower().endswith(RECORD_ENDING)]
        records = [one for one in candidates if one.lower().endswith(RECORD_ENDING)]
        self.passed_over += [*texts[1:], *records[1:]]
        return Beside(texts[0] if texts else "", records[0] if records else "")

    def _sorted(self, stem: str) -> list[str]:
        def rank(path: str) -> tuple[bool, bool, str]:
            name, ending = path[: path.rindex(".")], path[path.rindex(".") :]
            return ending.lower() == ".caption", (name, ending) != (stem, ending.lower()), path

        return sorted(self._of.get(normal_form(stem), ()), key=rank)


@dataclass
class Said:
    """What the files beside one of media say.

    Args:
        attributes: of the media.
        encodings: path and encoding of each file.
        unused: path of a JSON file that has no caption; empty where there is none.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    encodings: list[tuple[str, str]] = field(default_factory=list)
    unused: str = ""


def read_beside(files: Files, beside: Beside) -> Said:
    """What the files beside one of media say of it.

    Raises:
        SampleError: one of them can't be read; the text says which, without its folder.
    """
    said = Said()
    if beside.record:
        text, encoding = _read(files, beside.record)
        said.encodings.append((beside.record, encoding))
        said.attributes |= _record(text, beside.record)
        said.unused = "" if said.attributes else beside.record
    if beside.text:
        text, encoding = _read(files, beside.text)
        said.encodings.append((beside.text, encoding))
        said.attributes["text"] = text
    return said


def name_caption(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's plain values, its caption (the first of `CAPTION_COLUMNS`) as "text"."""
    by_name: dict[str, str] = {}
    for column in row:
        by_name.setdefault(column.strip().lower().replace(" ", "_"), column)
    values = {column: plain(value) for column, value in row.items()}
    for name, column in ((name, by_name[name]) for name in CAPTION_COLUMNS if name in by_name):
        if caption := _one_text(row[column], name):
            is_whole = isinstance(row[column], str) and name != "tags"
            others = {
                key: value
                for key, value in values.items()
                if key != "text" and not (is_whole and key == column)
            }
            return {"text": caption, **others}
    return {key: value for key, value in values.items() if key != "text"}


def _one_text(value: Any, name: str) -> str:
    """A caption of its value: of several the first, of tags all."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = ", ".join(value) if name == "tags" else value[0]
    return value.strip() if isinstance(value, str) else ""


def _record(text: str, path: str) -> dict[str, Any]:
    """Return what a JSON file says of its media; {} where it has no caption."""
    try:
        found = json.loads(text)
    except ValueError as err:
        raise SampleError(f"its caption {path.rsplit('/', 1)[-1]} is not JSON: {err}") from err
    if isinstance(found, (str, list)) and (caption := _one_text(found, "")):
        return {"text": caption}
    named = name_caption(found) if isinstance(found, dict) else {}
    return named if "text" in named else {}


def _read(files: Files, path: str) -> tuple[str, str]:
    name = path.rsplit("/", 1)[-1]
    try:
        text, encoding = decode_text(files.read(path))
    except FileNotFoundError as err:
        raise SampleError(f"its caption {name} is gone") from err
    except UnknownEncodingError as err:
        raise SampleError(f"its caption {name} can't be read: {err}") from err
    return text.strip(), encoding


def normal_form(path: str) -> str:
    """One form of a name: systems write letters with accents in two."""
    return path if path.isascii() else unicodedata.normalize("NFC", path)

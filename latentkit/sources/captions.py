"""Reads captions: from files with the same name as a media file, and from rows and JSON objects.

If several files have the same attribute, the first in this order decides: a table's row;
`name.txt`, `name.caption`, `name.jpg.txt`, `name.jpg.caption`; `name.json`, `name.jpg.json`.
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
from latentkit.sources.table_rows import to_plain_value

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
    "blip_caption",
    "short_caption",
    "conversations",
)
"""Column names, in any case, that become the attribute "text"; the first that a row has."""


@dataclass(frozen=True, slots=True)
class SidecarFiles:
    """The caption files of one media file: one with text, one with a JSON object. Empty if there is
    none.
    """

    text: str = ""
    record: str = ""


NO_SIDECARS = SidecarFiles()


class SidecarIndex:
    """Finds the caption files that belong to media files.

    Args:
        stems: path of each media file, to the same path without its ending.
        others: paths of all other files.
    """

    def __init__(self, stems: Mapping[str, str], others: Iterable[str]) -> None:
        self.passed_over: list[str] = []
        """Caption files that aren't used because the media file has another one."""
        self.unused: list[str] = []
        """Caption files that belong to no media file."""
        self._of: dict[str, list[str]] = {}
        captions = sorted(
            path for path in others if path.lower().endswith((*TEXT_ENDINGS, RECORD_ENDING))
        )
        names = (
            {normalize_accents(name) for pair in stems.items() for name in pair}
            if captions
            else set()
        )
        named = {path: normalize_accents(path[: path.rindex(".")]) for path in captions}
        folded: dict[str, list[str]] = {}
        for name in names if any(name not in names for name in named.values()) else ():
            folded.setdefault(name.casefold(), []).append(name)
        for path, name in named.items():
            owners = [name] if name in names else folded.get(name.casefold(), [])
            if len(owners) == 1:
                self._of.setdefault(owners[0], []).append(path)
            else:
                self.unused.append(path)

    def of(self, path: str, stem: str) -> SidecarFiles:
        """Return the caption files of the media file `path`; `stem` is the path without its
        ending.
        """
        candidates = [*self._sorted(stem), *self._sorted(path)]
        if not candidates:
            return NO_SIDECARS
        texts = [one for one in candidates if not one.lower().endswith(RECORD_ENDING)]
        records = [one for one in candidates if one.lower().endswith(RECORD_ENDING)]
        self.passed_over += [*texts[1:], *records[1:]]
        return SidecarFiles(texts[0] if texts else "", records[0] if records else "")

    def _sorted(self, stem: str) -> list[str]:
        """Return the caption files of a stem, the preferred one first."""

        def rank(path: str) -> tuple[bool, bool, str]:
            name, ending = path[: path.rindex(".")], path[path.rindex(".") :]
            return ending.lower() == ".caption", (name, ending) != (stem, ending.lower()), path

        return sorted(self._of.get(normalize_accents(stem), ()), key=rank)


@dataclass
class CaptionContent:
    """Content of the caption files of one media file.

    Args:
        attributes: attributes of the media.
        encodings: path and encoding of each file.
        unused: path of a JSON file without a caption; empty if there is none.
    """

    attributes: dict[str, Any] = field(default_factory=dict)
    encodings: list[tuple[str, str]] = field(default_factory=list)
    unused: str = ""


def read_sidecars(files: Files, sidecars: SidecarFiles) -> CaptionContent:
    """Read the attributes in a media file's caption files. Also return the path and encoding of
    each file.

    Raises:
        SampleError: a file can't be read; the message names it without its folder.
    """
    content = CaptionContent()
    if sidecars.record:
        text, encoding = _read(files, sidecars.record)
        content.encodings.append((sidecars.record, encoding))
        content.attributes |= _parse_record(text, sidecars.record)
        content.unused = "" if content.attributes else sidecars.record
    if sidecars.text:
        text, encoding = _read(files, sidecars.text)
        content.encodings.append((sidecars.text, encoding))
        content.attributes["text"] = text
    return content


def add_caption(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's plain values, with its caption as "text": the first non-empty column of
    `CAPTION_COLUMNS`.
    """
    by_name: dict[str, str] = {}
    for column in row:
        by_name.setdefault(column.strip().lower().replace(" ", "_"), column)
    values = {column: to_plain_value(value) for column, value in row.items()}
    for name, column in ((name, by_name[name]) for name in CAPTION_COLUMNS if name in by_name):
        if caption := _caption_text(row[column], name):
            is_whole = isinstance(row[column], str) and name != "tags"
            others = {
                key: value
                for key, value in values.items()
                if key != "text" and not (is_whole and key == column)
            }
            return {"text": caption, **others}
    return {key: value for key, value in values.items() if key != "text"}


def _caption_text(value: Any, name: str) -> str:
    """Return a cell's caption: the first of several, all tags joined, or the first answer of a
    conversation as LLaVA has it.
    """
    if name == "conversations":
        found = value if isinstance(value, list) else []
        turns = [turn for turn in found if isinstance(turn, Mapping)]
        value = next((turn.get("value") for turn in turns if turn.get("from") == "gpt"), None)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        value = ", ".join(value) if name == "tags" else value[0]
    return value.strip() if isinstance(value, str) else ""


def _parse_record(text: str, path: str) -> dict[str, Any]:
    """Return the attributes in a JSON file; nothing if it has no caption, such as notes of other
    programs.
    """
    try:
        found = json.loads(text)
    except ValueError as err:
        raise SampleError(f"its caption {path.rsplit('/', 1)[-1]} is not JSON: {err}") from err
    if isinstance(found, (str, list)) and (caption := _caption_text(found, "")):
        return {"text": caption}
    named = add_caption(found) if isinstance(found, dict) else {}
    return named if "text" in named else {}


def _read(files: Files, path: str) -> tuple[str, str]:
    """Return the text of a caption file and its encoding."""
    name = path.rsplit("/", 1)[-1]
    try:
        text, encoding = decode_text(files.read(path))
    except FileNotFoundError as err:
        raise SampleError(f"its caption {name} is gone") from err
    except UnknownEncodingError as err:
        raise SampleError(f"its caption {name} can't be read: {err}") from err
    return text.strip(), encoding


def normalize_accents(path: str) -> str:
    """Return a path with letters and accents combined (Unicode NFC), because systems write them in
    two ways.
    """
    return path if path.isascii() else unicodedata.normalize("NFC", path)

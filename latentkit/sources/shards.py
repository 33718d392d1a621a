"""Samples in tars, in the format of the library `webdataset`: files with one name and several
endings.

They are read here because the library `datasets` expects all samples to have the fields of the
first few, with the same types.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from latentkit.errors import SampleError
from latentkit.sources.captions import add_caption
from latentkit.sources.encodings import UnknownEncodingError, decode_text
from latentkit.sources.tars import Member, Tar

TEXT_FIELDS = ("text", "txt", "caption", "prompt", "transcript")
"""Endings of texts. The first that a sample has is its caption; it takes precedence over a JSON
object.
"""
NUMBER_FIELDS = ("cls", "cls2", "index", "inx", "id")
JSON_FIELDS = ("json", "jsn")

NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")
"""Key and field of a file's name, separated at the first dot like webdataset's `base_plus_ext`."""
FIELD_PART = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*|mp[34]|7z")


@dataclass(frozen=True, slots=True)
class Group:
    """The files of one sample in a tar: its key, and its files by field, such as "jpg"."""

    key: str
    fields: Mapping[str, Member]


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and field of a file's name; None if it has no ending.

    Everything between dots belongs to the field, as in "1.left.jpg", unless it can't be a field's
    name, as in "Track 8.0.jpg".
    """
    if (match := NAME.fullmatch(name)) is None:
        return None
    key, parts = match[1], match[2].split(".")
    while len(parts) > 1 and not FIELD_PART.fullmatch(parts[0]):
        key = f"{key}.{parts.pop(0)}"
    return key, ".".join(parts).lower()


def group_members(members: Iterable[Member]) -> tuple[list[Group], list[str]]:
    """Return the samples in a tar, in the order of their first files, and the names of the files
    without an ending.

    A sample's files need not be adjacent. A name that occurs again starts another sample, called
    "key#2".
    """
    groups: dict[tuple[str, int], dict[str, Member]] = {}
    newest: dict[str, int] = {}
    unnamed = []
    for member in members:
        if (names := split_name(member.name)) is None:
            unnamed.append(member.name)
            continue
        key, field = names
        number = newest.setdefault(key, 1)
        if field in groups.get((key, number), ()):
            number = newest[key] = number + 1
        groups.setdefault((key, number), {})[field] = member
    keys = _unique_keys(groups)
    return [Group(key, fields) for key, fields in zip(keys, groups.values(), strict=True)], unnamed


def _unique_keys(numbered: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Yield the keys of samples, numbered if a name occurs more than once. A name that exists in
    the tar, such as "a#2", is never given to another sample.
    """
    numbered = list(numbered)
    taken = {key for key, _ in numbered}
    for key, number in numbered:
        name = key
        while number > 1 and name in taken:
            name, number = f"{key}#{number}", number + 1
        taken.add(name)
        yield name


def kind_of(field: str) -> str:
    """Return how a field is read: "text", "number", "json" or "bytes"."""
    ending = field.rpartition(".")[2]
    kinds = {"text": TEXT_FIELDS, "number": NUMBER_FIELDS, "json": JSON_FIELDS}
    return next((kind for kind, endings in kinds.items() if ending in endings), "bytes")


# ---------------------------------------------------------------- reading a sample


def read_media(file: IO[bytes], group: Group, field: str) -> bytes | str:
    """Read a sample's media from its open tar. The result is a text if the field is one.

    Raises:
        SampleError: the file is cut off, or its text can't be read.
        OSError: the tar can't be reached.
    """
    member = group.fields[field]
    if not member.is_whole:
        raise SampleError(f"its tar is cut off in .{field}")
    content = _read(file, member)
    return content if kind_of(field) == "bytes" else _text(content, field)[0]


@dataclass
class TextNotes:
    """What was found in the texts of samples: how many have which encoding, and the keys of samples
    whose JSON object has another caption than their text file.
    """

    encodings: Counter[str] = field(default_factory=Counter)
    other_captions: list[str] = field(default_factory=list)


def read_attributes(
    file: IO[bytes], group: Group, notes: TextNotes | None = None
) -> dict[str, Any]:
    """Read a sample's attributes: its caption as "text", texts and numbers by their fields, and the
    content of its JSON objects.

    Args:
        notes: takes what is found in the texts.

    Raises:
        SampleError: a field can't be read; the message names it.
        OSError: the tar can't be reached.
    """
    notes = TextNotes() if notes is None else notes
    texts: dict[str, Any] = {}
    records: dict[str, Any] = {}
    for name, member in group.fields.items():
        kind = kind_of(name)
        if kind == "bytes" or not member.is_whole:
            continue
        text, encoding = _text(_read(file, member), name)
        notes.encodings[encoding] += 1
        if kind == "json":
            records |= _parse_record(text, name)
        else:
            texts[name] = _number(text) if kind == "number" else text
    caption = next((texts[name] for name in TEXT_FIELDS if name in texts), None)
    if caption is not None and records.get("text", caption) != caption:
        notes.other_captions.append(group.key)
    return {**records, **texts, **({} if caption is None else {"text": caption})}


def choose_attributes(
    file: IO[bytes], group: Group, values: Mapping[str, Any], names: Sequence[str]
) -> dict[str, Any]:
    """Return those of `read_attributes` that a recipe names. The field of a JSON object gives its
    text.
    """
    texts = {
        name: group.fields[name]
        for name in names
        if name in group.fields and kind_of(name) == "json"
    }
    whole = {
        name: _text(_read(file, member), name)[0]
        for name, member in texts.items()
        if member.is_whole
    }
    return {name: whole.get(name, values.get(name)) for name in names}


def _read(file: IO[bytes], member: Member) -> bytes:
    """Return the bytes of a file in a tar."""
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise OSError(
            f"{member.name}: only {len(content)} of its {member.size} bytes are in the tar; the"
            " tar changed while it was read"
        )
    return content


def _text(content: bytes, field: str) -> tuple[str, str]:
    """Decode a text field."""
    try:
        text, encoding = decode_text(content)
    except UnknownEncodingError as err:
        raise SampleError(f"its .{field} can't be read: {err}") from err
    return text.strip(), encoding


def _parse_record(text: str, field: str) -> dict[str, Any]:
    """Parse a JSON field."""
    try:
        found = json.loads(text)
    except ValueError as err:
        raise SampleError(f"its .{field} is not JSON: {err}") from err
    return add_caption(
        found
        if isinstance(found, dict)
        else {"text": found}
        if isinstance(found, str)
        else {field: found}
    )


def _number(text: str) -> int | str:
    """Return a number, or the text if it isn't one."""
    try:
        return int(text)
    except ValueError:
        return text


def prefix_keys(groups: Iterable[Group], tar: Tar) -> Iterator[Group]:
    """Yield the samples with the unique name of their tar in front of their keys."""
    return (replace(group, key=f"{tar.name}/{group.key}") for group in groups)

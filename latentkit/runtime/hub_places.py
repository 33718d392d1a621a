"""Parses places on the hub: an id, an id with a path, or an address copied from a browser."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
PAGES = ("tree", "blob", "resolve", "raw", "blame", "edit", "commit", "commits")
"""Pages of a repository whose address continues with a revision and a path."""

WEIGHT_SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
ID_PART = re.compile(r"\w[\w.-]*")
LONG_REVISION = re.compile(r"refs/(pr|convert)/[^/]+")
"""Revisions with a slash that the hub itself makes. In all others it is written as %2F."""


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, or a folder or file in one.

    Args:
        repository: owner/name.
        revision: branch, tag or commit; None is the main branch.
        path: path inside the repository, with "/"; empty for the whole repository.
        kind: model, dataset or space.
    """

    repository: str
    revision: str | None = None
    path: str = ""
    kind: str = "model"

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{at}{self.path and '/'}{self.path}"


def parse_hub_place(text: str, kind: str = "model") -> HubPlace | None:
    """Return the place on the hub that a text names; None if it can't be one.

    The hub isn't asked whether it exists.

    Args:
        text: `owner/name` or `owner/name@revision`, with or without `/path`; `hf://...` as fsspec
            writes it; or the address of a page or file on https://huggingface.co, its mirror, or
            HF_ENDPOINT.
        kind: kind of repository, if the text doesn't contain it.
    """
    if text.startswith("hf://buckets/"):
        return None  # a store like S3, not a repository
    if text.startswith("hf://"):
        return _parse_id(text.removeprefix("hf://").strip("/"), kind)
    if (page := _page_of(text)) is not None:
        return _parse_page(page, kind)
    if "://" in text or text.startswith((".", "/", "~")):
        return None
    place = _parse_id(text, kind)
    is_file = (
        place is not None and not place.path and place.repository.lower().endswith(WEIGHT_SUFFIXES)
    )
    return None if is_file else place


def _page_of(text: str) -> str | None:
    """Return what follows the host in an address of the hub or a mirror; None for any other
    text.
    """
    address = re.sub(r"[?#].*", "", text)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and address.startswith(f"{endpoint}/"):
        return address[len(endpoint) + 1 :]
    host, _, page = re.sub(r"^https?://", "", address).partition("/")
    return page if host.lower() in HOSTS else None


def _parse_page(page: str, kind: str) -> HubPlace | None:
    """Return the place in an address, without its host."""
    first, _, rest = page.strip("/").partition("/")
    if first in KINDS:
        kind, page = KINDS[first], rest
    elif kind != "space":
        kind = "model"  # the hub's own addresses name the other kinds
    parts = page.strip("/").split("/")
    length = 1 if len(parts) == 1 or parts[1] in PAGES else 2
    if not all(ID_PART.fullmatch(part) for part in parts[:length]):
        return None
    place = HubPlace("/".join(parts[:length]), kind=kind)
    if len(parts) <= length or parts[length] not in PAGES:
        return place
    return _with_revision_and_path(place, "/".join(parts[length + 1 :]))


def _parse_id(text: str, kind: str) -> HubPlace | None:
    """Return the place in an id."""
    first, _, rest = text.partition("/")
    if first in KINDS and rest.partition("@")[0].count("/"):
        kind, text = KINDS[first], rest
    owner, slash, rest = text.strip("/").partition("/")
    name, at, path = re.fullmatch(r"([^/@]*)([/@]?)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    is_path = bool({"", ".", ".."} & set(path.split("/"))) and path != ""
    if not slash or is_path or not ID_PART.fullmatch(owner) or not ID_PART.fullmatch(name):
        return None
    place = HubPlace(f"{owner}/{name}", kind=kind)
    if at == "@":
        return _with_revision_and_path(place, path)
    return replace(place, path=path.strip("/"))


def _with_revision_and_path(place: HubPlace, revision_and_path: str) -> HubPlace:
    """Return the place with a revision and a path, given as "revision/path"."""
    found = LONG_REVISION.match(revision_and_path)
    revision = found[0] if found else revision_and_path.partition("/")[0]
    path = revision_and_path[len(revision) :].strip("/")
    return replace(place, revision=unquote(revision) or None, path=unquote(path))

"""The files of a latent dataset that are published, and whether the hub has them already."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub.hf_api import RepoFile

from latentkit.publishing.private_paths import find_private_texts, hide_texts
from latentkit.runtime.yaml_files import dump_yaml, parse_yaml
from latentkit.store.dataset_json import DATASET, RECIPE, seal_document
from latentkit.store.folder import Folder
from latentkit.store.format import unit_name

CARD = "README.md"
DATA_FILE = re.compile(
    r"(plans|index)/\d{3,10}\.parquet|units/\d{3,10}-\d{6,10}\.safetensors|preview\.\w+"
)
"""Files that a push may remove from the hub when the dataset no longer has them."""

PREVIEW = re.compile(r"preview\.\w+")
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """A file as it is published.

    Args:
        content: None: that of the dataset's own file.
    """

    folder: Folder
    name: str
    size: int
    content: bytes | None = None

    def source(self) -> bytes | str:
        """Return the content, or the path of a local file with it."""
        return str(self.folder.local_copy(self.name)) if self.content is None else self.content

    def is_at(self, remote: RepoFile | None) -> bool:
        """Return whether a file on the hub has this content."""
        if remote is None or remote.size != self.size:
            return False
        if remote.lfs is not None:
            return self._hash(hashlib.sha256()) == remote.lfs.sha256
        return self._hash(hashlib.sha1(b"blob %d\0" % self.size)) == remote.blob_id

    def _hash(self, digest: Any) -> str:
        source = self.source()
        if isinstance(source, bytes):
            digest.update(source)
        else:
            with Path(source).open("rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
        return str(digest.hexdigest())


@dataclass(frozen=True)
class PublishedDataset:
    """What is published of a latent dataset, other than its card.

    Args:
        document: dataset.json as it is published.
        units: data that no other file can replace, to be uploaded first.
        others: what makes units a dataset.
        preview: name of the preview; None: there is none, or it isn't published.
        hidden: texts that aren't published, each with what is published instead.
    """

    document: Mapping[str, Any]
    units: tuple[PublishedFile, ...]
    others: tuple[PublishedFile, ...]
    preview: str | None
    hidden: Mapping[str, str]


def collect_files(
    folder: Folder, document: Mapping[str, Any], keep_paths: bool, with_preview: bool
) -> PublishedDataset:
    """Return what is published of the dataset in `folder`.

    Args:
        document: its dataset.json, without its own hash.
        keep_paths: publish absolute paths and logins in URLs as they are.

    Raises:
        StoreError, RecipeError: a file is missing, or recipe.yaml can't be read.
    """
    there = folder.top_names()
    text = folder.read(RECIPE).decode(errors="replace") if RECIPE in there else None
    recipe = None if text is None else parse_yaml(text, f"{folder}/{RECIPE}")
    hidden = {} if keep_paths else find_private_texts([document["source"].get("with"), recipe])
    public = {**document, "source": hide_texts(document["source"], hidden)}
    written = {DATASET: seal_document(public)}
    if text is not None:
        changed = hide_texts(recipe, hidden)
        written[RECIPE] = (text if changed == recipe else dump_yaml(changed)).encode()
    preview = next(filter(PREVIEW.fullmatch, sorted(there)), None) if with_preview else None
    names = [*document["plans"], document["index"]["name"], *([preview] if preview else [])]
    sizes = folder.ask_each(folder.size, names)
    units = {unit_name(name): unit["bytes"] for name, unit in document["units"].items()}
    return PublishedDataset(
        public,
        tuple(PublishedFile(folder, name, size) for name, size in units.items()),
        (
            *(PublishedFile(folder, *pair) for pair in zip(names, sizes, strict=True)),
            *(PublishedFile(folder, name, len(new), new) for name, new in written.items()),
        ),
        preview,
        hidden,
    )

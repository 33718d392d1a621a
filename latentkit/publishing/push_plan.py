"""What a push of a latent dataset uploads, found before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from latentkit.errors import FingerprintError, StoreError
from latentkit.publishing.dataset_card import read_card, write_card
from latentkit.publishing.dataset_repository import (
    Remote,
    explain_errors,
    look_at,
    parse_dataset_name,
    read_files,
)
from latentkit.publishing.private_paths import find_path_columns, hide_texts
from latentkit.publishing.published_files import (
    CARD,
    DATA_FILE,
    PublishedDataset,
    PublishedFile,
    collect_files,
)
from latentkit.runtime.cores import share_of_cores
from latentkit.runtime.hub_places import HubPlace
from latentkit.runtime.paths import in_shell
from latentkit.store.contents import column_filling, counted
from latentkit.store.dataset_json import (
    DATASET,
    count_superseded,
    newest_number,
    read_dataset,
    read_index,
)
from latentkit.store.folder import Folder
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import plan_numbers
from latentkit.upkeep.inspect_dataset import inspect_dataset
from latentkit.upkeep.verify import verify_folder

LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class PushOptions:
    """How a dataset is published.

    Args:
        license: the hub's name of a license, such as "cc-by-4.0"; None: the one that the card on
            the hub has.
        public: whether everybody may read a repository that is created now.
        keep_paths: whether absolute paths, and logins in URLs, are published as they are.
        preview: whether the preview is published.
        replace: whether another dataset in the repository is replaced.
    """

    license: str | None = None
    public: bool = False
    keep_paths: bool = False
    preview: bool = True
    replace: bool = False


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads, and what it removes.

    Args:
        remote: the repository as it is.
        is_public: whether everybody can read it, or will when it is made.
        added: units that the repository doesn't have.
        changed: other files that it doesn't have with this content.
        num_same: files that it has.
        card: the README.md.
        notes: what the owner of the dataset should know before it is published.
    """

    place: HubPlace
    remote: Remote
    is_public: bool
    added: Sequence[PublishedFile]
    changed: Sequence[PublishedFile]
    removed: Sequence[str]
    num_same: int
    card: str
    notes: Sequence[str]

    @property
    def is_empty(self) -> bool:
        """Return whether the hub has everything already."""
        return not (self.added or self.changed or self.removed)


def plan_push(path: str, name: str, options: PushOptions) -> PushPlan:
    """Return what has to be uploaded so that the dataset repository `name` on the hub has the
    latent dataset at `path`. Every byte of that is checked, and nothing is written.

    Args:
        name: owner/name, or owner/name@branch.

    Raises:
        StoreError: the dataset is unfinished or damaged, contains private paths, has no license,
            or the hub can't be reached or doesn't allow it.
        FingerprintError: the repository contains another dataset.
    """
    place = parse_dataset_name(name)
    folder = open_folder(path)
    document = _read_finished(folder)
    index = read_index(folder, document, ["key", "attributes"])
    if not options.keep_paths:
        _refuse_path_columns(folder, index)
    published = collect_files(folder, document, options.keep_paths, options.preview)
    with explain_errors(place):
        remote = look_at(place)
        before = read_files(place, remote, [CARD, DATASET])
    _check_remote(place, remote, before.get(DATASET), document, options.replace)
    card = _make_card(path, place, published, options.license, before.get(CARD))
    _refuse_damage(folder)  # last, because it takes longest
    added = [unit for unit in published.units if unit.name not in remote.files]
    rest = [unit for unit in published.units if unit.name in remote.files]
    rest += [*published.others, PublishedFile(folder, CARD, len(card), card)]
    changed = _select_changed(rest, remote)
    return PushPlan(
        place,
        remote,
        is_public=not remote.is_private if remote.head else options.public,
        added=added,
        changed=changed,
        removed=_select_removed(published, remote),
        num_same=len(rest) - len(changed),
        card=card.decode(),
        notes=_list_notes(folder, index, published),
    )


def _read_finished(folder: Folder) -> dict[str, Any]:
    """Return dataset.json of a dataset that no run has still to finish."""
    document = read_dataset(folder)
    if max(plan_numbers(folder), default=-1) > newest_number(document):
        raise StoreError(
            f"{folder}: a run that changes this dataset is unfinished. Run `latentkit run"
            f" {in_shell(f'{folder}/recipe.yaml')}` to continue, then push"
        )
    return document


def _refuse_damage(folder: Folder) -> None:
    if damage := verify_folder(folder).report().damage:
        more = f" (and {len(damage) - 1} more)" if damage[1:] else ""
        raise StoreError(f"{folder} is damaged, so nothing is uploaded: {damage[0]}{more}")


def _refuse_path_columns(folder: Folder, index: pa.Table) -> None:
    if found := find_path_columns(index):
        columns = ", ".join(f"{name} (such as {value!r})" for name, value in found.items())
        raise StoreError(
            f"{folder}: absolute paths would be published, as values of {columns}. Encode with"
            " other keys or without these columns, or allow it with --keep-paths"
        )


def _check_remote(
    place: HubPlace,
    remote: Remote,
    dataset_json: bytes | None,
    document: Mapping[str, Any],
    may_replace: bool,
) -> None:
    """Check that the repository is empty, or has this dataset or a part of it."""
    if may_replace:
        return
    advice = f"Choose another name than {place.repository}, or replace it with --replace"
    if dataset_json is None:
        others = sorted(
            name
            for name in remote.files
            if name != CARD and not name.startswith(".") and not DATA_FILE.fullmatch(name)
        )
        if others and not any(map(DATA_FILE.fullmatch, remote.files)):
            raise StoreError(
                f"{place} has other files, such as {others[0]}; a latent dataset needs a repository"
                f" of its own. {advice}"
            )
        return
    try:
        there = json.loads(dataset_json)
        fingerprint, plans = there["fingerprint"], dict(there["plans"])
    except (ValueError, KeyError, TypeError):
        fingerprint, plans = None, {}
    if fingerprint != document["fingerprint"]:
        raise FingerprintError(
            f"{place} has another dataset, made with other weights or settings (fingerprint"
            f" {str(fingerprint)[:16]}; here {document['fingerprint'][:16]}). {advice}"
        )
    if not plans.items() & document["plans"].items():
        raise StoreError(
            f"{place} has another dataset, of other samples, or this one before `latentkit compact`"
            f" ({', '.join(plans)} there has other contents). {advice}"
        )


def _make_card(
    path: str,
    place: HubPlace,
    published: PublishedDataset,
    license_id: str | None,
    before: bytes | None,
) -> bytes:
    existing = read_card(before, f"{place}/{CARD}")
    license_id = license_id or existing.metadata.get("license")
    if not isinstance(license_id, str) or not LICENSE_ID.fullmatch(license_id):
        got = f"; got {license_id!r}" if license_id else ""
        raise StoreError(
            f"{place}: the card needs a license, which is that of the samples, not of latentkit:"
            " --license with the hub's name of it, such as cc-by-4.0, cc0-1.0, mit, other or"
            f" unknown{got}. Names: https://huggingface.co/docs/hub/repositories-licenses"
        )
    found = hide_texts(inspect_dataset(path), published.hidden)
    found["index"] = published.document["index"]["name"]
    return write_card(found, place.repository, license_id, published.preview, existing)


def _select_changed(files: Sequence[PublishedFile], remote: Remote) -> list[PublishedFile]:
    """Return the files that the repository doesn't have with their content."""
    with ThreadPoolExecutor(share_of_cores()) as pool:
        is_same = pool.map(lambda file: file.is_at(remote.files.get(file.name)), files)
        return [file for file, same in zip(files, is_same, strict=True) if not same]


def _select_removed(published: PublishedDataset, remote: Remote) -> list[str]:
    """Return the data files of the repository that the dataset doesn't have any more."""
    kept = {file.name for file in (*published.units, *published.others)}
    return sorted(name for name in remote.files if DATA_FILE.fullmatch(name) and name not in kept)


def _list_notes(folder: Folder, index: pa.Table, published: PublishedDataset) -> list[str]:
    """Return what the owner of the dataset should know before it is published."""
    columns = ", ".join(column_filling(index["attributes"])) or "(none)"
    notes = [
        f"{DATASET} and recipe.yaml have {new!r} instead of {old!r}"
        for old, new in published.hidden.items()
    ]
    notes.append(
        f"the index has of every sample: key, size and time of its file, sha256, and the columns"
        f" {columns}"
    )
    if published.preview:
        notes.append(
            f"{published.preview} shows samples of the source (--no-preview leaves it out)"
        )
    if old_rows := count_superseded(published.document, index.num_rows):
        notes.append(
            f"{counted(old_rows, 'row')} of removed or changed samples are in the units too;"
            f" `latentkit compact {in_shell(folder)}` drops them"
        )
    return notes

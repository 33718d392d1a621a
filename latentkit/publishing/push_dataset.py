"""Uploads a latent dataset to the hub.

Units are uploaded first, some to a commit. The last commit makes a dataset of them: it adds plans,
index, dataset.json and the card, replaces what has changed, and removes what is gone. So every
commit of the repository is either no dataset, or a whole one, wherever an upload is stopped.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

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

UNITS_PER_COMMIT = 100
"""Few, because the hub checks every file of a commit before it answers."""

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
        dry_run: look and compare, but write nothing.
    """

    license: str | None = None
    public: bool = False
    keep_paths: bool = False
    preview: bool = True
    replace: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class PushPlan:
    """What a push uploads, and what it removes."""

    added: list[PublishedFile]
    changed: list[PublishedFile]
    removed: list[str]
    num_same: int

    @property
    def is_empty(self) -> bool:
        """Return whether the hub has everything already."""
        return not (self.added or self.changed or self.removed)


@dataclass(frozen=True)
class Push:
    """What was pushed, or with a dry run would be.

    Args:
        commit: the repository's newest commit; None where it doesn't exist yet.
        card: the README.md.
        notes: what the owner of the dataset should know.
    """

    place: HubPlace
    plan: PushPlan
    published: PublishedDataset
    commit: str | None
    card: str
    notes: list[str] = field(default_factory=list)


def push_dataset(path: str, name: str, options: PushOptions) -> Push:
    """Upload the latent dataset at `path` to the dataset repository `name` on the hub, as far as
    the hub doesn't have it.

    Args:
        name: owner/name, or owner/name@branch.

    Raises:
        StoreError: the dataset is unfinished or damaged, contains private paths, has no license,
            or the hub can't be reached or doesn't allow it.
        FingerprintError: the repository contains another dataset.
    """
    place = parse_dataset_name(name)
    if not options.dry_run and not get_token():
        raise StoreError(
            f"{place}: uploading needs an account: log in with `hf auth login`, or set HF_TOKEN"
        )
    folder = open_folder(path)
    document = _check_dataset(folder)
    published = collect_files(folder, document, options.keep_paths, options.preview)
    if not options.keep_paths:
        _refuse_path_columns(folder, document)
    with explain_errors(place):
        remote = look_at(place)
        before = read_files(place, remote, [CARD, DATASET])
    _check_remote(place, remote, before.get(DATASET), document, options.replace)
    card = _make_card(path, place, published, options.license, before.get(CARD))
    plan = _compare(published, PublishedFile(folder, CARD, len(card), card), remote)
    commit = remote.head
    if not options.dry_run and not plan.is_empty:
        with explain_errors(place):
            commit = _upload(place, remote, plan, options.public)
    is_private = remote.is_private if remote.head else not options.public
    notes = _list_notes(folder, document, published, is_private)
    return Push(place, plan, published, commit, card.decode(), notes)


def _check_dataset(folder: Folder) -> dict[str, Any]:
    """Return dataset.json of a dataset that is finished and undamaged."""
    document = read_dataset(folder)
    if max(plan_numbers(folder), default=-1) > newest_number(document):
        raise StoreError(
            f"{folder}: a run that changes this dataset is unfinished. Run `latentkit run"
            f" {in_shell(f'{folder}/recipe.yaml')}` to continue, then push"
        )
    damage = verify_folder(folder).report().damage
    if damage:
        more = f" (and {len(damage) - 1} more)" if damage[1:] else ""
        raise StoreError(f"{folder} is damaged, so nothing is uploaded: {damage[0]}{more}")
    return document


def _refuse_path_columns(folder: Folder, document: Mapping[str, Any]) -> None:
    found = find_path_columns(read_index(folder, document, ["key", "attributes"]))
    if found:
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
        there = json.loads(dataset_json).get("fingerprint")
    except (ValueError, AttributeError):
        there = None
    if there != document["fingerprint"]:
        raise FingerprintError(
            f"{place} has another dataset, made with other weights or settings (fingerprint"
            f" {str(there)[:16]}; here {document['fingerprint'][:16]}). {advice}"
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


def _compare(published: PublishedDataset, card: PublishedFile, remote: Remote) -> PushPlan:
    added = [unit for unit in published.units if unit.name not in remote.files]
    rest = [unit for unit in published.units if unit.name in remote.files]
    rest += [*published.others, card]
    changed = [file for file in rest if not file.is_at(remote.files.get(file.name))]
    kept = {file.name for file in (*published.units, *published.others)}
    removed = sorted(
        name for name in remote.files if DATA_FILE.fullmatch(name) and name not in kept
    )
    return PushPlan(added, changed, removed, len(rest) - len(changed))


# ---------------------------------------------------------------- uploading


def _upload(place: HubPlace, remote: Remote, plan: PushPlan, public: bool) -> str:
    """Upload and return the last commit."""
    api, head = HfApi(), remote.head
    if head is None:
        api.create_repo(place.repository, repo_type="dataset", private=not public, exist_ok=True)
        head = str(api.dataset_info(place.repository).sha)
    if place.revision is not None:
        api.create_branch(
            place.repository, branch=place.revision, repo_type="dataset", exist_ok=True
        )
    left, total = list(plan.added), len(plan.added)
    while len(left) > UNITS_PER_COMMIT:
        part, left = left[:UNITS_PER_COMMIT], left[UNITS_PER_COMMIT:]
        done = total - len(left)
        head = _commit(api, place, head, part, [], f"Units, {done} of {total}")
        print(f"{place}: {done} of {total} units are uploaded", file=sys.stderr, flush=True)
    message = "Update the latent dataset" if DATASET in remote.files else "Add a latent dataset"
    return _commit(api, place, head, [*left, *plan.changed], plan.removed, message)


def _commit(
    api: HfApi,
    place: HubPlace,
    head: str,
    files: Sequence[PublishedFile],
    removed: Sequence[str],
    message: str,
) -> str:
    """Commit files on top of `head`, and nothing else; return the new commit."""
    done = api.create_commit(
        place.repository,
        [
            *(CommitOperationAdd(file.name, file.source()) for file in files),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=message,
        repo_type="dataset",
        revision=place.revision,
        parent_commit=head,
    )
    return str(done.oid)


def _list_notes(
    folder: Folder, document: Mapping[str, Any], published: PublishedDataset, is_private: bool
) -> list[str]:
    """Return what the owner of the dataset should know about what is published."""
    table = read_index(folder, document, ["key", "attributes"])
    notes = ["private: only its owner reads it" if is_private else "public: everybody can read it"]
    notes += [
        f"{DATASET} and recipe.yaml have {new!r} instead of {old!r}"
        for old, new in published.hidden.items()
    ]
    columns = ", ".join(column_filling(table["attributes"]))
    notes.append(
        "the index has of every sample: key, size and time of its file, sha256, and the columns"
        f" {columns or '(none)'}"
    )
    if published.preview:
        notes.append(
            f"{published.preview} shows samples of the source (--no-preview leaves it out)"
        )
    if old_rows := count_superseded(document, table.num_rows):
        notes.append(
            f"{counted(old_rows, 'row')} of removed or changed samples are in the units too;"
            f" `latentkit compact {in_shell(folder)}` drops them"
        )
    return notes

"""Dataset repositories on the hub: their names, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from latentkit.errors import StoreError
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error
from latentkit.runtime.hub_places import HubPlace, parse_hub_place

PUSH_ERRORS: tuple[type[Exception], ...] = (*HUB_ERRORS, RuntimeError)
"""The last is an upload's, around the error itself."""


@dataclass(frozen=True)
class Remote:
    """A repository at one commit.

    Args:
        head: the commit; None: there is no such repository.
        has_branch: whether it is that of the branch in question, not of main.
        files: every file, by its name.
    """

    head: str | None
    has_branch: bool
    is_private: bool
    files: Mapping[str, RepoFile]


def parse_dataset_name(name: str) -> HubPlace:
    """Return the repository that a name means.

    Args:
        name: owner/name, with or without @revision; hf://datasets/owner/name, or the address of its
            page.

    Raises:
        StoreError: it names no dataset repository, or a folder in one.
    """
    place = parse_hub_place(name, "dataset")
    if place is None or place.kind != "dataset" or place.path:
        raise StoreError(
            f"{name!r} is no dataset repository on the hub; expected owner/name, or"
            " owner/name@revision"
        )
    return place


def look_at(place: HubPlace) -> Remote:
    """Return the repository at the newest commit of the place's branch, or of main if there is no
    such branch.

    Raises what the hub's library does.
    """
    api, has_branch = HfApi(), True
    try:
        try:
            found = api.dataset_info(place.repository, revision=place.revision)
        except RevisionNotFoundError:
            found, has_branch = api.dataset_info(place.repository), False
    except RepositoryNotFoundError:
        return Remote(None, False, False, {})
    entries = api.list_repo_tree(
        place.repository, recursive=True, revision=found.sha, repo_type="dataset"
    )
    files = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    return Remote(found.sha, has_branch, bool(found.private), files)


def read_files(place: HubPlace, remote: Remote, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of those of some small files that the repository has, by name.

    Raises what the hub's library does.
    """
    return {
        name: Path(
            hf_hub_download(place.repository, name, repo_type="dataset", revision=remote.head)
        ).read_bytes()
        for name in names
        if name in remote.files
    }


@contextmanager
def explain_errors(place: HubPlace) -> Iterator[None]:
    """Turn an error of the hub into a `StoreError` that says what to do."""
    try:
        yield
    except PUSH_ERRORS as error:
        if isinstance(error, ValueError) and "Invalid metadata" in str(error):
            raise StoreError(f"{place}: the hub refuses the card: {error}") from error
        raise StoreError(f"{place}: {explain_hub_error(error, place, 'write')}") from error

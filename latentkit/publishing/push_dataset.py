"""Uploads a latent dataset to the hub.

Units are uploaded first, some to a commit. The last commit makes a dataset of them: it adds plans,
index, dataset.json and the card, replaces what has changed, and removes what is gone. So every
commit of the repository is either no dataset, or a whole one, wherever an upload is stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from latentkit.errors import StoreError
from latentkit.publishing.dataset_repository import explain_errors
from latentkit.publishing.published_files import PublishedFile
from latentkit.publishing.push_plan import PushPlan
from latentkit.runtime.hub_places import HubPlace
from latentkit.store.contents import counted
from latentkit.store.dataset_json import DATASET

UNITS_PER_COMMIT = 100
BYTES_PER_COMMIT = 32 << 30
"""Few, because the hub checks every file of a commit before it answers, and because units at a URL
are copied to this machine before that.
"""


def check_account() -> None:
    """Check that there is a token, before a dataset is read for nothing.

    Raises:
        StoreError: there is none.
    """
    if not get_token():
        raise StoreError(
            "uploading needs an account on the hub: log in with `hf auth login`, or set HF_TOKEN"
        )


def push_dataset(plan: PushPlan) -> str:
    """Upload what is planned, and return the newest commit. After a stop, plan and push again.

    Raises:
        StoreError: the hub can't be reached, doesn't allow it, or was written to meanwhile.
    """
    if plan.is_empty:
        return str(plan.remote.head)
    with explain_errors(plan.place):
        api, head = HfApi(), _prepare_branch(plan)
        *first, last = _split_units(plan.added)
        done = 0
        for part in first:
            done += len(part)
            title = f"{done} of {counted(len(plan.added), 'unit')}"
            head = _commit(api, plan.place, head, part, [], f"Add {title}")
            print(f"{plan.place}: {title} uploaded", file=sys.stderr, flush=True)
        verb = "Update the" if DATASET in plan.remote.files else "Add a"
        files = [*last, *plan.changed]
        return _commit(api, plan.place, head, files, plan.removed, f"{verb} latent dataset")


def _prepare_branch(plan: PushPlan) -> str:
    """Make repository and branch if they are missing, and return the branch's commit."""
    api, place, head = HfApi(), plan.place, plan.remote.head
    if head is None:
        is_private = not plan.is_public
        api.create_repo(place.repository, repo_type="dataset", private=is_private, exist_ok=True)
        head = str(api.dataset_info(place.repository).sha)
    if place.revision is not None and not plan.remote.has_branch:
        api.create_branch(
            place.repository, branch=place.revision, repo_type="dataset", exist_ok=True
        )
    return head


def _split_units(units: Sequence[PublishedFile]) -> list[list[PublishedFile]]:
    """Return the units of each commit; the last list may be empty."""
    batches: list[list[PublishedFile]] = [[]]
    for unit in units:
        num_bytes = sum(other.size for other in batches[-1]) + unit.size
        if len(batches[-1]) == UNITS_PER_COMMIT or (batches[-1] and num_bytes > BYTES_PER_COMMIT):
            batches.append([])
        batches[-1].append(unit)
    return batches


def _commit(
    api: HfApi,
    place: HubPlace,
    head: str,
    files: Sequence[PublishedFile],
    removed: Sequence[str],
    message: str,
) -> str:
    """Add and delete files in one commit whose parent is `head`; return its id."""
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

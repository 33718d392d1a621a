"""Datasets on the hub: which one a recipe names, whether it exists, and why it can't be read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, errors

from latentkit.errors import SourceError
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error, list_causes
from latentkit.runtime.hub_places import ID_PART, HubPlace, parse_hub_place

TIMEOUT_SECONDS = 10.0


def find_hub_data(path: str, revision: str | None, local: Path) -> HubPlace:
    """Return the place on the hub that a recipe's `path` names. The hub is asked once, without the
    library's half-minute of retries.

    Args:
        path: owner/name, a folder or file in it, or the address of its page.
        revision: branch, tag or commit; None is the one in `path`, or else the main branch.
        local: the local path that doesn't exist, for messages.

    Raises:
        SourceError: the path isn't a hub id, the dataset doesn't exist, or the hub can't be reached
            and nothing is cached.
    """
    place = parse_hub_place(path, "dataset")
    missing = f"source datasets: {path!r}" + (
        "" if "://" in path else f" is not a path ({local} does not exist), and"
    )
    if place is None and ID_PART.fullmatch(path):  # the oldest datasets have no owner
        place = HubPlace(path, kind="dataset")
    if place is None:
        raise SourceError(f"{missing} not a hub id such as owner/name either")
    if place.kind != "dataset":
        raise SourceError(
            f"{missing} is a {place.kind} on the hub; expected a dataset, such as"
            " hf://datasets/owner/name"
        )
    if revision is not None and place.revision not in (None, revision):
        raise SourceError(
            f"{missing} contains the revision {place.revision!r}, but the option revision is"
            f" {revision!r}. Leave one out"
        )
    place = replace(place, revision=revision or place.revision)
    try:
        HfApi().dataset_info(place.repository, revision=place.revision, timeout=TIMEOUT_SECONDS)
    except HUB_ERRORS as error:
        is_refused = isinstance(
            error,
            errors.RepositoryNotFoundError
            | errors.RevisionNotFoundError
            | errors.HFValidationError,
        )
        cached = Path(datasets.config.HF_DATASETS_CACHE) / place.repository.replace("/", "___")
        if is_refused or not cached.is_dir():
            raise SourceError(f"{missing} on the hub: {explain_hub_error(error, place)}") from error
    return place


def builder_options(place: HubPlace, endings: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of `datasets.load_dataset_builder` other than the name: the revision,
    and the folder or file in the dataset.

    Args:
        endings: endings of data files; any other path is a folder.
    """
    options: dict[str, Any] = {"revision": place.revision}
    if place.path.lower().endswith(endings):
        return options | {"data_files": {"train": [place.path]}}
    return options | ({"data_dir": place.path} if place.path else {})


def explain_hub_failure(error: Exception, place: HubPlace | None) -> str | None:
    """Return the hub's reason for an error of `datasets`; None if it has another cause."""
    if place is None:
        return None
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):  # which drops the hub's error
        try:
            HfApi().auth_check(place.repository, repo_type="dataset")
        except HUB_ERRORS as refusal:
            return explain_hub_error(refusal, place)
    hubs_own = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled)
    is_hubs = any(isinstance(cause, hubs_own) for cause in list_causes(error))
    return explain_hub_error(error, place) if is_hubs else None

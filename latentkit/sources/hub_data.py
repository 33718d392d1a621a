"""Data sets on the hub: which one a recipe names, whether it is there, and what keeps it away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, errors

from latentkit.errors import SourceError
from latentkit.runtime.hub_errors import HUB_ERRORS, causes_of, explain_hub_error
from latentkit.runtime.hub_places import ID_PART, HubPlace, parse_hub_place

TIMEOUT_SECONDS = 10.0


def find_hub_data(path: str, revision: str | None, local: Path) -> HubPlace:
    """Return the place on the hub that `path` names; the hub is asked once.

    Args:
        path: owner/name, a folder or file in it, or the address of its page.
        revision: branch, tag or commit; None is the one that `path` names, or the main branch.
        local: the path of this machine that it isn't.

    Raises:
        SourceError: it is no place on the hub, isn't there, or the hub can't be reached and nothing
            is cached.
    """
    place = parse_hub_place(path, "dataset")
    missing = f"source datasets: {path!r}" + (
        "" if "://" in path else f" is not a path ({local} does not exist), and"
    )
    if place is None and ID_PART.fullmatch(path):  # the oldest data sets have no owner
        place = HubPlace(path, kind="dataset")
    if place is None:
        raise SourceError(f"{missing} not a hub id such as owner/name either")
    if place.kind != "dataset":
        raise SourceError(
            f"{missing} names a {place.kind} of the hub; expected a data set, such as"
            " hf://datasets/owner/name"
        )
    if revision is not None and place.revision not in (None, revision):
        raise SourceError(
            f"{missing} names the revision {place.revision!r}, and the option revision"
            f" {revision!r}; leave one out"
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


def options_of(place: HubPlace, endings: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of `datasets.load_dataset_builder` for a revision and a path.

    Args:
        endings: of files of data; any other path is a folder.
    """
    options: dict[str, Any] = {"revision": place.revision}
    if place.path.lower().endswith(endings):
        return options | {"data_files": {"train": [place.path]}}
    return options | ({"data_dir": place.path} if place.path else {})


def explain_failure(error: Exception, place: HubPlace | None) -> str | None:
    """The hub's reason where `datasets` failed by one; None where it is another."""
    if place is None:
        return None
    if isinstance(error, datasets.exceptions.DatasetNotFoundError):  # which has lost the hub's own
        try:
            HfApi().auth_check(place.repository, repo_type="dataset")
        except HUB_ERRORS as refusal:
            return explain_hub_error(refusal, place)
    hubs_own = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled)
    is_hubs = any(isinstance(cause, hubs_own) for cause in causes_of(error))
    return explain_hub_error(error, place) if is_hubs else None

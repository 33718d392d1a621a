"""Downloads a latent dataset from the hub into a folder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from latentkit.errors import DamagedError, StoreError
from latentkit.publishing.dataset_repository import parse_dataset_name
from latentkit.publishing.published_files import CARD, PREVIEW
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error
from latentkit.runtime.progress import Progress
from latentkit.store.dataset_json import DATASET, RECIPE, read_dataset, read_index, read_units
from latentkit.store.format import unit_name
from latentkit.store.hub_folder import HubFolder, open_hub_folder
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import number_of, read_plan
from latentkit.store.unit_cache import open_cache

SCRATCH = ".cache"
"""Where the hub's library keeps what it has of unfinished downloads; removed in the end."""


@dataclass(frozen=True)
class Pull:
    """A dataset that was downloaded.

    Args:
        address: of the commit, as `latentkit.open` takes it.
    """

    folder: Path
    address: str
    num_units: int
    num_bytes: int


def pull_dataset(name: str, output: str) -> Pull:
    """Download the latent dataset `name` into the folder `output`. After a stop, or when the hub
    has a newer commit, what is there isn't downloaded again.

    dataset.json is written last, so an unfinished download is no dataset.

    Args:
        name: owner/name, or owner/name@revision.
        output: a folder that is missing, empty, or has an earlier download of this dataset.

    Raises:
        StoreError: the repository has no finished dataset, can't be reached, or the folder has
            something else.
        DamagedError: what was downloaded isn't what was published.
    """
    remote = open_hub_folder(parse_dataset_name(name), open_cache(None))
    content = remote.read(DATASET) if remote.exists(DATASET) else None
    if content is None and remote.list("units"):
        raise StoreError(f"{remote}: its upload is unfinished; push it again")
    document = read_dataset(remote)
    local = LocalFolder(Path(output).expanduser().absolute())
    _check_output(local, document)
    wanted = [*document["plans"], document["index"]["name"], *map(unit_name, document["units"])]
    beside = [name for name in remote.top_names() if name in (RECIPE, CARD) or PREVIEW.match(name)]
    _download(remote, local, [*wanted, *beside])
    _check_download(local, document)
    assert content is not None
    local.replace(DATASET, content)
    shutil.rmtree(local.path / SCRATCH / "huggingface", ignore_errors=True)
    with suppress(OSError):
        (local.path / SCRATCH).rmdir()
        (local.path / "claims").rmdir()
    num_bytes = sum(unit["bytes"] for unit in document["units"].values())
    return Pull(local.path, str(remote), len(document["units"]), num_bytes)


def _check_output(local: LocalFolder, document: Mapping[str, Any]) -> None:
    """Check that the folder can take the dataset: it has nothing, or an earlier state of it."""
    there = local.top_names()
    if DATASET not in there:
        if there and not (local.path / SCRATCH / "huggingface").is_dir():
            raise StoreError(
                f"{local} isn't empty, and has no download to continue. Choose an empty folder"
            )
        return
    plans = document["plans"]
    stated = read_dataset(local)["plans"].items()
    others = [name for name, digest in stated if plans.get(name) != digest]
    others += [name for file in local.list("plans") if (name := f"plans/{file}") not in plans]
    if others:
        raise StoreError(
            f"{local} has what the hub doesn't, such as {others[0]}: another dataset,"
            " or changes that were not pushed. Choose an empty folder"
        )


def _download(remote: HubFolder, local: LocalFolder, names: Sequence[str]) -> None:
    """Download files into their place. What the hub's library finds there isn't downloaded."""
    place = remote.place

    def fetch(name: str) -> None:
        hf_hub_download(
            place.repository,
            name,
            repo_type="dataset",
            revision=place.revision,
            local_dir=local.path,
        )
        progress.update(1)

    try:
        with Progress(len(names), "files", shown=True) as progress:
            remote.ask_each(fetch, names)
    except HUB_ERRORS as error:
        reason = explain_hub_error(error, place)
        raise StoreError(f"{remote}: {reason}. What is there is kept; run again") from error


def _check_download(local: LocalFolder, document: Mapping[str, Any]) -> None:
    """Check index, plans, and the sizes and headers of units against dataset.json."""
    read_index(local, document)
    for name, stated in document["plans"].items():
        if hashlib.sha256(local.read(name)).hexdigest() != stated:
            raise DamagedError(f"{local}/{name} isn't the plan that {DATASET} describes")
    units = read_units(local, [read_plan(local, number_of(name)) for name in document["plans"]])
    for name, stated in document["units"].items():
        header = units[name].header
        if (header.file_bytes, header.sha256) != (stated["bytes"], stated["header_sha256"]):
            raise DamagedError(
                f"{local}/{unit_name(name)} isn't the unit that {DATASET} describes. Delete it and"
                " run again"
            )

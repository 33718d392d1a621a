"""Downloads a latent dataset from the hub into a folder."""

from __future__ import annotations

import glob
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from latentkit.errors import DamagedError, StoreError
from latentkit.publishing.dataset_repository import parse_dataset_name
from latentkit.publishing.published_files import CARD
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error
from latentkit.runtime.paths import in_shell
from latentkit.store.dataset_json import DATASET, RECIPE, read_dataset, read_index, read_units
from latentkit.store.format import unit_name
from latentkit.store.hub_folder import HubFolder, open_hub_folder
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import number_of, read_plan
from latentkit.store.unit_cache import open_cache

SCRATCH = ".cache"
"""Where the hub's library keeps what it has of unfinished downloads; removed in the end."""

PATTERNS = ("units/*", "plans/*", "index/*", "preview.*", RECIPE, CARD)


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
    wanted = [*map(unit_name, document["units"]), *document["plans"], document["index"]["name"]]
    _download(remote, local, wanted)
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
    """Check that the folder can take the dataset: nothing in it is replaced by something older."""
    there = local.top_names()
    if not there or (there == {SCRATCH}) or (local.path / SCRATCH / "huggingface").is_dir():
        return
    if DATASET not in there:
        raise StoreError(
            f"{local} isn't empty, and has no download to continue. Choose an empty folder"
        )
    if read_dataset(local)["fingerprint"] != document["fingerprint"]:
        raise StoreError(f"{local} has another dataset. Choose an empty folder")
    newer = {f"plans/{name}" for name in local.list("plans")} - {*document["plans"]}
    if any(name > max(document["plans"]) for name in newer):
        raise StoreError(
            f"{local} has changes that the hub doesn't have, such as {max(newer)}. Choose an empty"
            f" folder, or upload them: `latentkit push {in_shell(local)} OWNER/NAME`"
        )


def _download(remote: HubFolder, local: LocalFolder, wanted: Sequence[str]) -> None:
    """Download files, and what is beside them, into their place."""
    left_over = {
        f"{part}/{name}" for part in ("units", "plans", "index") for name in remote.list(part)
    } - {*wanted}
    try:
        snapshot_download(
            remote.place.repository,
            repo_type="dataset",
            revision=remote.place.revision,
            local_dir=local.path,
            allow_patterns=list(PATTERNS),
            ignore_patterns=[glob.escape(name) for name in left_over],
        )
    except HUB_ERRORS as error:
        reason = explain_hub_error(error, remote.place)
        raise StoreError(f"{remote}: {reason}. What is there is kept; run again") from error
    missing = [name for name in wanted if not local.exists(name)]
    if missing:  # the hub's library only warns when the network is lost
        raise StoreError(f"{remote}: {missing[0]} can't be downloaded now; run again")


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

"""`HubFolder`: a latent dataset on the Hugging Face hub, read at one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, ParamSpec, TypeVar

from fsspec.callbacks import TqdmCallback
from huggingface_hub import HfApi

from latentkit.errors import StoreError
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error, list_causes
from latentkit.runtime.hub_places import HubPlace
from latentkit.store.unit_cache import UnitCache
from latentkit.store.url_folder import UrlFolder

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_SECONDS = 10.0


class HubFolder(UrlFolder):
    """The folder of a dataset repository, or one in it. It can only be read.

    Args:
        place: its revision is a commit, so that what is read never mixes two of them.
        cache: where units are kept.
    """

    def __init__(self, place: HubPlace, cache: UnitCache) -> None:
        self.place = place
        super().__init__(f"hf://datasets/{place}", cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return HubFolder, (self.place, self.cache)

    def local_copy(self, name: str) -> Path:
        # By content, so a unit that a later commit has too isn't downloaded again.
        before = self.describe(name)
        content = getattr(before.get("lfs"), "sha256", None) or before.get("blob_id")
        known = f"hub content {content}" if content else f"{self.url}/{name}"
        digest = hashlib.sha256(known.encode()).hexdigest()
        return self.cache.fetch(
            digest, int(before["size"]), lambda path: self._download(name, before, path)
        )

    def _get(self, name: str, path: Path, size: int) -> None:
        no_bar = TqdmCallback(tqdm_kwargs={"disable": True})
        self.fs.get_file(self._path(name), str(path), callback=no_bar)
        if path.stat().st_size != size:
            raise ConnectionError(f"{path.stat().st_size} of {size} bytes arrived")

    def _ask(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return super()._ask(name, function, *args, **kwargs)
        except StoreError as error:
            if isinstance(error.__cause__, HUB_ERRORS):
                reason = explain_hub_error(error.__cause__, self.place)
                raise StoreError(f"{self.url}/{name}: {reason}") from error
            raise
        except FileNotFoundError as error:  # the driver says so of a refused request too
            if refusal := next(filter(_is_refusal, list_causes(error)), None):
                reason = explain_hub_error(refusal, self.place)  # type: ignore[arg-type]
                raise StoreError(f"{self.url}/{name}: {reason}") from error
            raise

    def _check_bucket(self) -> None:
        """Do nothing: the repository was found when the folder was opened."""

    # ------------------------------------------------------------ never written

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        self._refuse(name)
        yield

    def replace(self, name: str, content: bytes) -> None:
        self._refuse(name)

    def remove(self, name: str) -> None:
        self._refuse(name)

    def claim(self, name: str, content: str) -> bool:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        raise StoreError(
            f"{self.url}/{name} can't be written: datasets on the hub can be read, not written."
            " Use a folder, and upload it with `latentkit push`"
        )


def open_hub_folder(place: HubPlace, cache: UnitCache) -> HubFolder:
    """Return the folder at the commit that the place's branch or tag names now.

    Raises:
        StoreError: there is no such dataset or revision, it isn't yours to read, or the hub can't
            be reached.
    """
    where = f"hf://datasets/{place}"
    if place.kind != "dataset":
        raise StoreError(
            f"{place} is a {place.kind} on the hub; a latent dataset has an address such as"
            " hf://datasets/owner/name"
        )
    try:
        api = HfApi()
        found = api.dataset_info(place.repository, revision=place.revision, timeout=TIMEOUT_SECONDS)
        if found.gated:
            api.auth_check(place.repository, repo_type="dataset")
    except HUB_ERRORS as error:
        raise StoreError(f"{where}: {explain_hub_error(error, place)}") from error
    return HubFolder(replace(place, revision=found.sha), cache)


def _is_refusal(error: BaseException) -> bool:
    return getattr(error, "response", None) is not None and error.response.status_code != 404  # type: ignore[attr-defined]

"""Finds the files of the model that a recipe names. From a repository on the hub it downloads only
the files that are needed.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from tqdm.auto import tqdm

from latentkit.encoders.hub_weights import choose_weights, find_weights, list_shards
from latentkit.errors import EncoderError
from latentkit.runtime.hub_errors import HUB_ERRORS, explain_hub_error, hub_page_url
from latentkit.runtime.hub_places import HubPlace, parse_hub_place

TIMEOUT_SECONDS = 10.0
MAX_SUGGESTIONS = 3
CONFIG = "config.json"
INDEX = "model_index.json"
SNAPSHOT = re.compile(
    r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})"
)
NAMED_VAE = re.compile(r"(^|[^a-z])(vae|ae)([^a-z]|$)", re.IGNORECASE)


class _NoBar(tqdm):  # type: ignore[misc]
    """A progress bar that shows nothing, for files of a few kilobytes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def find_local_or_hub(model: str, revision: str | None, recipe_dir: Path) -> Path | HubPlace:
    """Return the local path that a recipe's model names, relative to the recipe's folder, or the
    place on the hub. The hub is not asked yet.

    Args:
        model: a path, `owner/name` with or without a path behind it, or the address of its page.
        revision: branch, tag or commit on the hub; None is the one in `model`, or else the main
            branch.
        recipe_dir: folder that relative paths start from.

    Raises:
        EncoderError: `model` is neither, or contains another revision than `revision`.
    """
    path = recipe_dir / Path(model).expanduser()
    if path.exists():
        return _snapshot_in(path, revision or "main")
    place = parse_hub_place(model)
    if place is None:
        instead = (
            "; download it, and give the path of the file"
            if "://" in model
            else ", nor a hub id (owner/name)"
        )
        raise EncoderError(f"model {model}: no such file or folder ({path}){instead}")
    if place.kind != "model":
        raise EncoderError(f"model {model}: this is a {place.kind} on the hub; expected a model")
    if revision is not None and place.revision not in (None, revision):
        raise EncoderError(
            f"model {model}: it contains the revision {place.revision!r}, but the option revision"
            f" is {revision!r}. Leave one out"
        )
    return HubPlace(place.repository, revision or place.revision, place.path)


def _snapshot_in(path: Path, revision: str) -> Path:
    """Return the snapshot of a revision if `path` is a repository in the hub's cache, such as
    models--owner--name; else `path` itself.
    """
    if not (path / "snapshots").is_dir():
        return path
    ref, there = path / "refs" / revision, sorted((path / "snapshots").iterdir())
    name = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    found = [one for one in there if one.name == name] or there
    if len(found) != 1:
        raise EncoderError(
            f"{path}: none of its {len(there)} snapshots is of the revision {revision!r}; give the"
            " path of one"
        )
    return found[0]


def find_model_path(
    model: str, revision: str | None, patterns: Sequence[str], recipe_dir: Path
) -> Path:
    """Return the path of a model: the local one, relative to the recipe's folder, or that of the
    files downloaded from the hub.

    Args:
        model: a path, `owner/name` with or without a path behind it, or the address of its page on
            the hub.
        revision: branch, tag or commit on the hub; None is the main branch.
        patterns: globs of the files to download.
        recipe_dir: folder that relative paths start from.

    Raises:
        EncoderError: nothing is there, or the hub can't be reached.
    """
    found = find_local_or_hub(model, revision, recipe_dir)
    if isinstance(found, Path):
        return found
    files = RepositoryFiles(model, found, recipe_dir)
    below = f"{found.path}/" if found.path else ""
    wanted = [
        name for name in files.names if any(fnmatch(name, below + pattern) for pattern in patterns)
    ]
    if not wanted:
        page = f"{hub_page_url(found)}/tree/{found.revision or 'main'}"
        raise EncoderError(
            f"model {model}: {found} has none of {', '.join(patterns)}; its files: {page}"
        )
    return files.download(wanted) / found.path


def find_model_folder(
    model: str,
    subfolder: str | None,
    revision: str | None,
    recipe_dir: Path,
    choose: Callable[[Path], Path],
    variant: str | None = None,
) -> Path:
    """Return the local folder or single file of a model. From the hub, configs are downloaded
    first, then the weights of the chosen folder.

    Args:
        model: a path, `owner/name` with or without a path behind it, or the address of its page on
            the hub.
        subfolder: folder inside the model's folder whose config is needed too.
        revision: branch, tag or commit on the hub; None is the main branch.
        recipe_dir: folder that relative paths start from.
        choose: takes the folder of a model or pipeline with its configs and returns the folder
            whose weights are needed, or raises an `EncoderError`; not called for a single file.
        variant: which weights to take from the hub, such as "fp16"; None takes the plain ones, or
            the only ones there are.

    Raises:
        EncoderError: nothing is there, the hub can't be reached, there are no weights, or `choose`
            finds nothing.
    """
    found = find_local_or_hub(model, revision, recipe_dir)
    if isinstance(found, Path):
        return found if found.is_file() else choose(found)
    files = RepositoryFiles(model, found, recipe_dir)
    place = "/".join(filter(None, (found.path, subfolder)))
    if place in files.names:
        beside = str(PurePosixPath(place).with_name(CONFIG))
        return files.download([place, *({beside} & files.names)]) / place
    configs = _configs(files, found.path, subfolder)
    if not configs:
        what = (
            f"no file or folder {found.path}"
            if found.path and not files.below(found.path)
            else "no config.json of a model or pipeline"
        )
        raise EncoderError(
            f"model {model}: {found.repository} has"
            f" {what}{f' in {place}' if place else ''}{_suggest_alternatives(files, found)}"
        )
    root = files.download(configs)
    try:
        folder = choose(root / found.path)
    except EncoderError as error:
        raise EncoderError(f"{error}{_suggest_alternatives(files, found)}") from error
    _download_weights(files, folder.relative_to(root).as_posix(), variant)
    return folder


def hub_commit(path: Path | None) -> str | None:
    """Return `owner/name@commit` of a file or folder in the hub library's cache; None for any other
    path.
    """
    found = SNAPSHOT.search(str(path))
    return f"{found['owner']}/{found['name']}@{found['commit']}" if found else None


class RepositoryFiles:
    """File names of a hub repository, with download on demand. Files in the hub library's cache are
    not downloaded again.

    If the hub doesn't answer, the names are those of the snapshot in the cache.

    Args:
        model: the recipe's name of the model, for messages.
        place: repository, revision and path on the hub.
        recipe_dir: folder of the recipe, for messages.

    Raises:
        EncoderError: there is no such repository or revision, or the hub can't be reached and
            nothing is cached.
    """

    def __init__(self, model: str, place: HubPlace, recipe_dir: Path) -> None:
        self.model, self.place = model, place
        self._recipe_dir = recipe_dir
        self.hub_error: str | None = None
        self._root: Path | None = None
        try:
            found = HfApi().model_info(
                place.repository, revision=place.revision, timeout=TIMEOUT_SECONDS
            )
            self.names = {one.rfilename for one in found.siblings or []}
        except HUB_ERRORS as error:
            self.hub_error = explain_hub_error(error, place)
            root = self._root = self._cached(error)
            self.names = {
                file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()
            }

    def below(self, folder: str) -> list[str]:
        """Return the names of all files below a folder, relative to it. "" is the repository's
        root.
        """
        start = f"{folder}/" if folder else ""
        return [name.removeprefix(start) for name in self.names if name.startswith(start)]

    def download(self, names: Collection[str]) -> Path:
        """Make sure that these files are in the cache, and return the repository's folder there.

        Raises:
            EncoderError: a file can't be downloaded.
        """
        root = self._root
        try:
            if root is None or not all((root / name).is_file() for name in names):
                root = self._root = self._fetch(names, self.hub_error is not None)
        except HUB_ERRORS as error:
            raise EncoderError(self._message(explain_hub_error(error, self.place))) from error
        missing = sorted(name for name in names if not (root / name).is_file())
        if missing:  # offline, the hub's library returns what it has
            raise EncoderError(
                self._message(
                    f"{', '.join(missing)} can't be downloaded from the hub now; run again in a"
                    " few minutes"
                )
            )
        return root

    def _cached(self, error: Exception) -> Path:
        """Return the repository's folder in the cache."""
        try:
            return self._fetch([], True)
        except HUB_ERRORS:
            raise EncoderError(self._message(str(self.hub_error))) from error

    def _fetch(self, names: Collection[str], only_cached: bool) -> Path:
        """Download the named files, or find them in the cache, and return the repository's
        folder.
        """
        revision = (
            self.place.revision if self._root is None else self._root.name
        )  # the first download decides the commit
        is_small = all(name.endswith(".json") for name in names)
        found = snapshot_download(
            self.place.repository,
            revision=revision,
            allow_patterns=[glob.escape(name) for name in names],
            local_files_only=only_cached,
            tqdm_class=_NoBar if is_small else None,
        )
        return Path(found)

    def _message(self, reason: str) -> str:
        """Return the text of an error: model, where was looked, reason."""
        here = (
            ""
            if "://" in self.model
            else f"no such file or folder here ({self._recipe_dir / self.model}), and on the hub: "
        )
        return f"model {self.model}: {here}{reason}"


def _configs(files: RepositoryFiles, path: str, subfolder: str | None) -> list[str]:
    """Return the configs of a model or pipeline: in its folder, directly below it, and in
    `subfolder`.
    """
    below = f"{path}/" if path else ""
    mine = set(files.below(path))
    wanted = {
        CONFIG,
        INDEX,
        f"{subfolder}/{CONFIG}",
        *(name for name in mine if fnmatch(name, f"*/{CONFIG}") and name.count("/") == 1),
    }
    return [below + name for name in sorted(wanted & mine)]


def _download_weights(files: RepositoryFiles, folder: str, variant: str | None) -> None:
    """Download the weights of one folder in one form. If an index lists several files, those it
    names are downloaded.
    """
    below = "" if folder == "." else f"{folder}/"
    here = files.below(below.rstrip("/"))
    where = f"model {files.model}: {folder if below else 'its folder'}"
    named = find_weights([name for name in here if "/" not in name], any_name=True)
    if not find_weights(here) and len(named) == 1:
        files.download([below + named[0]])
        return
    if not find_weights(here):
        missing = (
            f"; only a part of it is in the cache, and {files.hub_error}" if files.hub_error else ""
        )
        others = [name for name in here if "/" not in name and name != CONFIG]
        there = f"; the files there: {', '.join(sorted(others)[:8])}" if others else ""
        raise EncoderError(
            f"{where} has a config.json but no weights; expected"
            f" diffusion_pytorch_model.safetensors{there}{missing}"
        )
    chosen = choose_weights(here, where, variant)
    index = next((name for name in chosen if name.endswith(".json")), None)
    if index is not None:
        root = files.download([below + index])
        weights = json.loads((root / below / index).read_text(encoding="utf-8"))
        chosen = [index, *list_shards(weights, chosen, f"{where}: {index}")]
    files.download([below + name for name in chosen])


def _suggest_alternatives(files: RepositoryFiles, place: HubPlace) -> str:
    """Return a text that suggests what to name instead of a repository without a usable
    autoencoder: one in diffusers' format, or a file in it.
    """
    offers = []
    sibling = f"{place.repository}-Diffusers"
    if (
        files.hub_error is None
        and not place.repository.lower().endswith("diffusers")
        and _is_model(sibling)
    ):
        offers.append(f"{sibling} has it in diffusers' format")
    named = sorted(
        name
        for name in find_weights(files.names, any_name=True)
        if NAMED_VAE.search(name.rpartition("/")[2])
    )
    if named:
        offers.append(
            "name a single file as "
            + " or ".join(f"{place.repository}/{name}" for name in named[:MAX_SUGGESTIONS])
        )
    return (
        f"; {'; '.join(offers)}"
        if offers
        else f"; its files: {hub_page_url(place)}/tree/{place.revision or 'main'}"
    )


def _is_model(repository: str) -> bool:
    """Return whether the hub has a model repository of this name."""
    try:
        return bool(HfApi().model_info(repository, timeout=TIMEOUT_SECONDS).id)
    except HUB_ERRORS:
        return False

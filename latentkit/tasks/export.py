"""A finished latent dataset in the format of somebody's trainer, through an exporter plugin."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from latentkit.contracts import BuildContext
from latentkit.errors import LatentkitError, PluginError, StoreError
from latentkit.plugins import discover
from latentkit.reading.dataset import LatentDataset, open_dataset
from latentkit.runtime.key_errors import validate
from latentkit.runtime.paths import is_url
from latentkit.store.dataset_json import read_dataset, read_index
from latentkit.store.open_folder import open_folder


def export_dataset(path: str, output: str, to: str, options: Mapping[str, Any]) -> int:
    """Rows that were exported, all or none: OUT appears when everything is written.

    Args:
        path: the latent dataset, a folder or a URL.
        output: folder that is missing or empty.
        to: name of an exporter plugin.

    Raises:
        PluginError: there is no such exporter, or it wrote nothing.
        RecipeError: it has no such option.
        StoreError: the dataset is missing, unfinished or damaged; or the output is taken, inside
            the dataset, or can't be written.
    """
    spec = discover().find("exporter", to).spec
    config = validate(spec.config, options, f"exporter {to!r}")
    dataset = open_for_export(path)
    folder = _check_output(output, path)
    exporter = spec.build(config, BuildContext(recipe_dir=Path.cwd()))
    part = folder.with_name(f".{folder.name}.part-{secrets.token_hex(4)}")
    try:
        part.mkdir(parents=True)
        exporter.export(dataset, part)
        if not any(part.iterdir()):
            raise PluginError(f"exporter {to!r} wrote nothing into its folder")
        if folder.exists():
            folder.rmdir()  # an empty one, or it is refused
        part.rename(folder)  # which fails where something else is by now
    except OSError as error:
        raise StoreError(f"{output} can't be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return len(dataset)


def open_for_export(path: str) -> LatentDataset:
    """A latent dataset as an exporter gets it: every view a row, with all attributes; `dataset[i]`
    has the mean, never a draw.

    Raises:
        StoreError: missing, unfinished or damaged, or an attribute has a name that rows have for
            something else.
    """
    folder = open_folder(path)
    kind = read_index(folder, read_dataset(folder), ["attributes"])["attributes"].type
    names = [field.name for field in kind] if pa.types.is_struct(kind) else []
    try:
        return open_dataset(path, posterior="mean", columns=names)
    except ValueError as error:
        raise StoreError(f"{path} can't be exported: {error}") from error


def _check_output(output: str, path: str) -> Path:
    """The folder to write, absolute."""
    if is_url(output):
        raise LatentkitError(
            f"{output}: expected a local folder to export to; copy it to the URL afterwards"
        )
    folder = Path(os.path.abspath(os.path.expanduser(output)))
    if not is_url(path) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path)):
        raise StoreError(
            f"{output} lies in the latent dataset {path}, which holds nothing else; export to"
            " another folder"
        )
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise StoreError(f"{output} is there already; expected a folder that is missing or empty")
    return folder

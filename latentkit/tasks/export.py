"""Export a finished latent dataset to the format of a trainer, with an exporter plugin."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel

from latentkit.contracts import BuildContext, Export, ExportNeeds, ItemExporter
from latentkit.errors import LatentkitError, PluginError, StoreError
from latentkit.exporting.items import Items, ItemSettings
from latentkit.exporting.names import safe_name
from latentkit.exporting.needs import check_needs
from latentkit.exporting.write_parts import PartWriter, closing_path
from latentkit.plugins import Provided, discover
from latentkit.reading.dataset import LatentDataset, open_dataset
from latentkit.runtime.key_errors import validate
from latentkit.runtime.paths import is_url
from latentkit.store.contents import counted
from latentkit.store.dataset_json import read_dataset, read_index
from latentkit.store.folder import Folder
from latentkit.store.open_folder import open_folder
from latentkit.tasks.source_media import SourceMedia


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Args:
        what: number of exported items, such as "6 rows", or "3 samples (6 rows)".
        remarks: a line for each kind of rows that were left out.
        closing: lines for the trainer's configuration; empty for none.
    """

    what: str
    remarks: Sequence[str] = ()
    closing: str = ""


def export_dataset(path: str, output: str, to: str, options: Mapping[str, Any]) -> Exported:
    """Export a dataset; the output folder appears when everything is written.

    Args:
        path: the latent dataset, a folder or a URL.
        output: folder that is missing or empty.
        to: name of an exporter plugin.
        options: options of the exporter.

    Raises:
        PluginError: the exporter doesn't exist, or wrote nothing.
        RecipeError: the exporter has no such option.
        StoreError: the dataset is missing, unfinished or damaged, or lacks what the exporter needs;
            or the output is taken, inside the dataset, or can't be written.
    """
    provided = discover().find("exporter", to)
    config = validate(provided.spec.config, options, f"exporter {to!r}")
    folder = _check_output(output, path)
    exporter = provided.spec.build(config, BuildContext(recipe_dir=Path.cwd()))
    if not isinstance(exporter, ItemExporter):
        dataset = open_for_export(path)
        _export_whole(exporter, dataset, folder, output, to)
        return Exported(counted(len(dataset), "row"))
    closing_file = closing_path(exporter, folder)
    if closing_file.exists():
        raise StoreError(
            f"{closing_file} is there already, but the export must write a file of that name;"
            " remove it, or export to another folder"
        )
    items, export = open_items(exporter, config, path, folder, to)
    identity = _identity(provided, config, items, folder)
    closing = PartWriter(exporter, items, export, to).run(identity)
    rows = counted(items.num_rows, "row")
    if exporter.needs.per == "row":
        return Exported(rows, (), closing)
    left_out = counted(items.num_left_out, "sample")
    views = " and ".join(exporter.needs.views)
    remarks = [f"{left_out} left out, without {views}"] if items.num_left_out else []
    return Exported(f"{counted(len(items), 'sample')} ({rows})", remarks, closing)


def _identity(provided: Provided, config: BaseModel, items: Items, folder: Path) -> dict[str, Any]:
    """Return everything that decides what is written, JSON-like."""
    datasets = (items.dataset, items.settings.text)
    return {
        "exporter": [
            provided.spec.name,
            provided.distribution,
            provided.version,
            provided.spec.version,
        ],
        "options": json.loads(config.model_dump_json()),
        "output": str(folder),
        "datasets": [
            [one.fingerprint, one.index_hash, asdict(one.normalization)]
            for one in datasets
            if one is not None
        ],
    }


def open_items(
    exporter: ItemExporter,
    config: Any,
    path: str,
    folder: Path,
    to: str = "it",
    find_media: Callable[[str], Any] | None = None,
) -> tuple[Items, Export]:
    """Return an exporter's input: the items of a latent dataset, and their shared properties.

    Args:
        config: the exporter's options.
        folder: where the export will lie.
        to: the exporter's name.
        find_media: returns the media of a key, for an exporter that needs them; None: they are read
            from the source.

    Raises:
        StoreError: the dataset is missing, unfinished or damaged, or lacks what the exporter needs.
    """
    needs, posterior = exporter.needs, getattr(config, "posterior", "mean")
    dataset = open_for_export(path, getattr(config, "views", None))
    allowed = bool(getattr(config, "allow_other_scale", False))
    check_needs(needs, dataset, to, posterior, allowed)
    if needs.media and find_media is None:
        find_media = SourceMedia(path)
    settings = ItemSettings(
        draws=posterior == "draw",
        seed=getattr(config, "seed", 0),
        limit=getattr(config, "limit", None),
        text=_open_text(getattr(config, "text", None), needs, to),
        find_media=find_media,
        name_of=getattr(exporter, "name_of", safe_name),
    )
    items = Items(dataset, needs, settings)
    if isinstance(find_media, SourceMedia):
        find_media.check(items.keys)
    return items, _export_of(items, folder)


def _export_of(items: Items, folder: Path) -> Export:
    """Return the properties that all items of an export share."""
    dataset = items.dataset
    return Export(
        folder,
        len(items),
        dataset.layout,
        dataset.normalization,
        dataset.statistics,
        dataset.fingerprint,
        dataset.views,
        sorted(set(dataset.bucket_names(slice(None)))),
        items.label_names,
        {field.name: field.type for field in _attribute_fields(dataset.folder)},
    )


def open_for_export(path: str, views: Sequence[str] | None = None) -> LatentDataset:
    """Open a dataset for an exporter: every view a row, all attributes, means.

    Args:
        views: views to export; None: all.

    Raises:
        StoreError: the dataset is missing, unfinished or damaged, or an attribute has a name that
            rows have for something else; or it has no such view.
    """
    names = [field.name for field in _attribute_fields(open_folder(path))]
    try:
        return open_dataset(
            path,
            posterior="mean",
            views="all" if views is None else list(views),
            columns=names,
        )
    except ValueError as error:
        raise StoreError(f"{path} can't be exported: {error}") from error


def _attribute_fields(folder: Folder) -> list[pa.Field]:
    """Return the attributes' names and types from the index of a dataset."""
    kind = read_index(folder, read_dataset(folder), ["attributes"])["attributes"].type
    return list(kind) if pa.types.is_struct(kind) else []


def _open_text(path: str | None, needs: ExportNeeds, to: str) -> LatentDataset | None:
    """Open the dataset of text embeddings; None if none is named or needed."""
    if path is None and needs.text:
        raise StoreError(
            f"{to} needs text embeddings; encode the captions of the same source with the modality"
            " text, and name that latent dataset with text=PATH"
        )
    if path is None:
        return None
    text = open_dataset(os.path.expanduser(path), posterior="mean")
    if text.layout.axes != "CL":
        raise StoreError(
            f"text={path}: expected a latent dataset of text embeddings (modality text, axes CL),"
            f" got axes {text.layout.axes}"
        )
    has_lengths = text.layout.ragged_axis or len(set(text.bucket_names(slice(None)))) > 1
    if needs.text_one_length and has_lengths:
        raise StoreError(
            f"text={path}: {to} takes text embeddings of one length, and these have their own;"
            " encode the captions again with encoder.with.padding: max_length"
        )
    return text


def _export_whole(
    exporter: Any, dataset: LatentDataset, folder: Path, output: str, to: str
) -> None:
    """Run an exporter that takes the whole dataset; remove its files if it fails."""
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


def _check_output(output: str, path: str) -> Path:
    """Return the absolute path of the output folder, which must be missing or empty."""
    if is_url(output):
        raise LatentkitError(
            f"{output}: expected a local folder to export to; copy it to the URL afterwards"
        )
    folder = Path(os.path.abspath(os.path.expanduser(output)))
    if not is_url(path) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(path)):
        raise StoreError(
            f"{output} lies in the latent dataset {path}, where no other files may be; export to"
            " another folder"
        )
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise StoreError(f"{output} is there already; expected a folder that is missing or empty")
    return folder

"""Checks for exporters."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from latentkit.contracts import Exporter, ExporterSpec, ExportNeeds, ItemExporter, NamedSpec
from latentkit.testing.exported_dataset import (
    DATASET,
    DatasetShape,
    copy_dataset,
    full_shape,
    image_bytes,
)
from latentkit.testing.plugin import PluginContract

PART = "written here"
"""Name of the folder in which files are written before it is renamed to the export."""

ITEMS_PER_PART = 2
"""Items per part for an exporter that doesn't set it: few, so that there are several parts."""


class ExporterContract(PluginContract, ABC):
    """Checks that every `Exporter` or `ItemExporter` must pass. Set `spec`, and override `read`.

    The dataset has two views of six samples in two shapes, and fits the exporter's `needs`.
    """

    spec_type: ClassVar[type[NamedSpec]] = ExporterSpec
    protocols: ClassVar[tuple[type, ...]] = (Exporter, ItemExporter)

    tolerance: float = 1e-6
    """Largest difference, absolute and relative, of latents that are read back; set it higher for a
    format with half precision.
    """

    # ------------------------------------------------------------ what a plugin author overrides

    @abstractmethod
    def read(self, folder: Path) -> Iterable[tuple[str, str, Tensor]]:
        """Read an export with the format's own reader. Yield key, view and latent of every row, in
        any order.
        """

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        """Return the expected result of `read`: by default the normalized latents, (C, h, w)
        float32.
        """
        return [
            (row["key"], row["view"], row["latent"])
            for row in (dataset[index] for index in range(len(dataset)))
        ]

    def make_dataset(self, folder: Path) -> None:
        """Make a finished latent dataset that suits the exporter, the same each time."""
        copy_dataset(folder, full_shape(self.needs(folder.parent)))

    # ------------------------------------------------------------ checks

    def test_every_row_is_there_with_its_latent(self, tmp_path: Path) -> None:
        """The format's own reader gives every row once, with its key, view and latent.
        """
        dataset, folder = self.export(tmp_path)
        wanted = {(key, view): latent for key, view, latent in self.expected(dataset)}
        rows = list(self.read(folder))
        names = sorted((key, view) for key, view, _ in rows)
        assert names == sorted(wanted), f"rows read back: {names}; expected {sorted(wanted)}"
        for key, view, latent in rows:
            other = wanted[key, view]
            same = latent.shape == other.shape and torch.allclose(
                latent.double(), other.double(), self.tolerance, self.tolerance
            )
            assert same, f"{key!r}, {view}: what is read back is not the latent that was exported"

    def test_an_export_stays_in_its_folder(self, tmp_path: Path) -> None:
        """Nothing is written outside the folder, for any keys, and no link leads out of it.
        """
        _, folder = self.export(tmp_path)
        there = (path.name for path in tmp_path.iterdir())
        beside = sorted(name for name in there if name not in (folder.name, DATASET))
        links = sorted(path.name for path in folder.rglob("*") if path.is_symlink())
        assert (
            not beside
        ), f"written beside the folder: {beside}; keys are no paths: number the files"
        assert not links, f"links: {links}; copy what they lead to"

    def test_an_export_leaves_the_dataset_alone(self, tmp_path: Path) -> None:
        """Every file of the latent dataset is the same after an export as before."""
        self.make_dataset(tmp_path / "as before")
        before = files_of(tmp_path / "as before")
        self.export(tmp_path)
        assert files_of(tmp_path / DATASET) == before, "the export changed the dataset it reads"

    def test_an_export_again_is_the_same(self, tmp_path: Path) -> None:
        """Two exports of a dataset are equal, byte for byte: no times, no addresses, no order of a
        set.
        """
        found = [self._export_and_remove(tmp_path, True) for _ in range(2)]
        assert (
            found[0].keys() == found[1].keys()
        ), f"other files the second time: {sorted(found[0].keys() ^ found[1].keys())}"
        different = sorted(name for name in found[0] if found[0][name] != found[1][name])
        assert (
            not different
        ), f"these files differ the second time: {different}; leave out times, and sort"

    def test_no_file_says_where_it_was_written(self, tmp_path: Path) -> None:
        """No file contains the path of the folder in which it was written, because that is renamed
        at the end; `Export.folder` is the final folder.
        """
        _, folder = self.export(tmp_path)
        place = str(tmp_path / PART).encode()
        wrong = sorted(name for name, content in files_of(folder).items() if place in content)
        assert not wrong, f"these files name a folder that is gone: {wrong}; use export.folder"

    def test_items_in_any_order_and_again_give_the_same_files(self, tmp_path: Path) -> None:
        """Parts that are written from the last to the first, each twice and by another exporter
        with the same options, give the same files. This happens with threads, and after a stop.
        """
        if self.needs(tmp_path) is None:
            return
        found = [self._export_and_remove(tmp_path, is_plain) for is_plain in (True, False)]
        different = sorted(
            name for name in {*found[0], *found[1]} if found[0].get(name) != found[1].get(name)
        )
        assert not different, (
            f"these files differ: {different}; keep nothing from one call of write for the next,"
            " open files for writing and not for appending, and let finish write what is about all"
        )

    def test_what_it_needs_is_enough(self, tmp_path: Path) -> None:
        """A dataset with only the views, values and attributes that `needs` names can be exported.

        A test class with its own `make_dataset` skips this: such datasets are of a kind that can't
        be reduced here.
        """
        needs = self.needs(tmp_path)
        if needs is None or type(self).make_dataset is not ExporterContract.make_dataset:
            return
        least = _least_shape(needs)
        try:
            self.export(tmp_path, shape=least)
        except Exception as error:
            raise AssertionError(
                f"a dataset with only what `needs` declares can't be exported: {error!r}. `needs`"
                f" is {needs}, the dataset has {least}. Declare in `needs` everything that the"
                " exporter uses"
            ) from error

    # ------------------------------------------------------------ for the checks

    def build(self, tmp_path: Path) -> Any:
        """Build the exporter from the config, which is made once for each folder."""
        return self.spec.build(self._config(tmp_path), self.make_context(tmp_path))

    def _config(self, tmp_path: Path) -> Any:
        made = vars(self).setdefault("_configs", {})
        if tmp_path not in made:
            made[tmp_path] = self.make_config(tmp_path)
        return made[tmp_path]

    def needs(self, tmp_path: Path) -> ExportNeeds | None:
        """Return the exporter's needs; None for an exporter of whole datasets."""
        exporter = self.build(tmp_path)
        return exporter.needs if isinstance(exporter, ItemExporter) else None

    def export(
        self, tmp_path: Path, is_plain: bool = True, shape: DatasetShape | None = None
    ) -> tuple[Any, Path]:
        """Export a dataset; return the dataset and the export's folder.

        Args:
            is_plain: whether parts are written in order and once.
            shape: properties of the dataset; None: the dataset of `make_dataset`.
        """
        from latentkit.tasks.export import open_for_export

        path, folder = tmp_path / DATASET, tmp_path / PART
        self.make_dataset(path) if shape is None else copy_dataset(path, shape)
        dataset = open_for_export(str(path))
        folder.mkdir()
        exporter = self.build(tmp_path)
        if isinstance(exporter, ItemExporter):
            self._export_items(exporter, path, folder, is_plain)
        else:
            exporter.export(dataset, folder)
        return dataset, folder.rename(tmp_path / "export")

    def _export_and_remove(self, tmp_path: Path, is_plain: bool) -> dict[str, bytes]:
        """Export, and return the files' content. The files are removed, so that the next export has
        the same folder.
        """
        found = files_of(self.export(tmp_path, is_plain)[1])
        for name in ("export", DATASET):
            shutil.rmtree(tmp_path / name)
        return found

    def _export_items(
        self, exporter: ItemExporter, path: Path, folder: Path, is_plain: bool
    ) -> None:
        """Write a folder as `latentkit export` does, but without threads."""
        from latentkit.tasks.export import open_items

        config, final = self._config(path.parent), path.parent / "export"
        items, export = open_items(
            exporter, config, str(path), final, find_media=image_bytes
        )
        size = getattr(exporter, "items_per_part", ITEMS_PER_PART)
        parts = [(first, min(first + size, len(items))) for first in range(0, len(items), size)]
        records: dict[int, Sequence[Any]] = {}
        for first, last in parts if is_plain else [*reversed(parts), *parts]:
            writer = exporter if is_plain else self.build(path.parent)
            records[first] = writer.write(items.read(first, last), folder, export)
        for _ in range(1 if is_plain else 2):
            listed = [record for first, _ in parts for record in records[first]]
            exporter.finish(iter(listed), folder, export)


def _least_shape(needs: ExportNeeds) -> DatasetShape:
    """Return a dataset that has only what is needed."""
    full = full_shape(needs)
    views = tuple(needs.views) or ("plain",)
    attributes = (needs.label,) if needs.label else ()
    return replace(full, views=views, attributes=attributes, has_moments=needs.moments)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

"""Items of a latent dataset for exporters, read in blocks: a row each, or all views of a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from latentkit.contracts import ExportItem, ExportNeeds, ExportRow
from latentkit.errors import StoreError
from latentkit.exporting.names import make_unique, safe_name, shorten
from latentkit.exporting.row_block import RowBlock
from latentkit.reading.dataset import LatentDataset
from latentkit.store.columns import Rows
from latentkit.store.dataset_json import read_dataset, read_index

BLOCK_BYTES = 1 << 25
"""Bytes of stored rows to read at once."""

MOST_AT_ONCE = 128
"""Most items to read at once."""

MOST_LABELS = 1 << 20
"""Classes; a trainer makes an embedding for each number below the largest."""

FoundRow = tuple[ExportRow, dict[str, Any]]
"""A row, and its key and attributes."""


@dataclass(frozen=True)
class ItemSettings:
    """How items are read, from the exporter's options and the command.

    Args:
        draws: whether `ExportRow.raw` is a random draw rather than the mean.
        seed: seed of the draws.
        limit: most items to read; None: all.
        text: a latent dataset of text embeddings, with the same keys.
        find_media: returns the media of a key.
        name_of: returns an item's name for a key.
    """

    draws: bool = False
    seed: int = 0
    limit: int | None = None
    text: LatentDataset | None = None
    find_media: Callable[[str], Any] | None = None
    name_of: Callable[[str], str] = safe_name


class Items:
    """The items of a dataset by number; `read` may be called by several threads at once.

    Args:
        dataset: latent dataset that is opened with views "all", or a list of views.

    Attributes:
        keys, names: key and file name of every item, in order.
        num_left_out: number of samples that lack a needed view.
        label_names: name of each class number.

    Raises:
        StoreError: a sample has no label, or no text embedding.
    """

    def __init__(self, dataset: LatentDataset, needs: ExportNeeds, settings: ItemSettings) -> None:
        self.dataset, self.settings, self._needs = dataset, settings, needs
        spans = _spans_of_keys(dataset.keys if needs.per == "sample" else range(len(dataset)))
        whole = _spans_with_views(dataset, spans, needs.views) if needs.per == "sample" else spans
        self.num_left_out = len(spans) - len(whole)
        if not len(whole):
            raise StoreError(f"{dataset.folder}: no sample has all of {', '.join(needs.views)}")
        self._spans = whole[: settings.limit]
        self.keys = [dataset.keys[start] for start in self._spans[:, 0].tolist()]
        self.names = make_unique(shorten(settings.name_of(key)) for key in self.keys)
        self.label_names, self._labels = _number_labels(dataset, needs.label)
        self._geometry = read_index(dataset.folder, read_dataset(dataset.folder), ["geometry"])
        self._places = dataset.places_in_index()
        if settings.text is not None:
            _check_texts(settings.text, self.keys)

    def __len__(self) -> int:
        return len(self._spans)

    @property
    def num_rows(self) -> int:
        """Number of rows of all items."""
        return int((self._spans[:, 1] - self._spans[:, 0]).sum())

    def read(self, start: int, stop: int) -> Iterator[ExportItem]:
        """Yield the items from number `start` up to `stop`, without `stop` itself.

        Raises:
            StoreError: a unit is missing or damaged.
        """
        count = 1
        while start < stop:
            block = range(start, min(stop, start + count))
            rows, num_bytes = self._read_rows(block)
            for number in block:
                yield self._item(number, rows)
            count = max(1, min(MOST_AT_ONCE, BLOCK_BYTES * len(block) // max(1, num_bytes)))
            start = block.stop

    def _item(self, number: int, rows: Mapping[int, FoundRow]) -> ExportItem:
        """Return one item from the rows that were read."""
        found = [rows[place] for place in range(*self._spans[number].tolist())]
        attributes = {**found[0][1]}
        key = attributes.pop("key")
        label = None if self._labels is None else int(self._labels[self._spans[number][0]])
        text, media = self.settings.text, self.settings.find_media
        return ExportItem(
            number,
            key,
            self.names[number],
            {row.view: row for row, _ in found},
            attributes,
            label,
            None if text is None else _only_tensors(text[key]),
            None if media is None else functools.partial(media, key),
        )

    def _read_rows(self, block: range) -> tuple[dict[int, FoundRow], int]:
        """Return the rows of some items by position, with key and attributes; and their bytes."""
        items = np.arange(self._spans[block.start, 0], self._spans[block.stop - 1, 1])
        if self._needs.per == "sample":
            wanted = [np.arange(*span) for span in self._spans[block.start : block.stop].tolist()]
            items = np.concatenate(wanted)
        found, num_bytes = {}, 0
        for group in self._split_by_shape(items):
            values, mask, labels = self.dataset.load_stored(group)
            num_bytes += values.nbytes
            rows = self._make_rows(group, values, mask, labels.pop("view"))
            for place, (position, row) in enumerate(zip(group.tolist(), rows, strict=True)):
                found[position] = row, {name: value[place] for name, value in labels.items()}
        return found, num_bytes

    def _split_by_shape(self, items: Rows) -> Iterator[Rows]:
        """Yield positions whose rows have one shape; each ragged row alone, so that none is padded.
        """
        if self.dataset.layout.ragged_axis is not None:
            yield from items[:, None]
            return
        codes = self.dataset.stackable_groups(items)
        for code in np.unique(codes):
            yield items[codes == code]

    def _make_rows(
        self, items: Rows, values: Tensor, mask: Tensor | None, views: Sequence[str]
    ) -> Sequence[ExportRow]:
        """Return the `ExportRow` of each loaded position: `values` and `mask` are (N, ...)."""
        data = self.dataset
        found = self._geometry["geometry"].take(self._places[items]).to_pylist()
        geometries = [
            {name: value for name, value in (one or {}).items() if value is not None}
            for one in found
        ]
        keys = [data.keys[place] for place in items.tolist()]
        seed = self.settings.seed if self.settings.draws else None
        block = RowBlock(data, values, keys, views, seed)
        return block.rows(data.bucket_names(items), geometries, mask)


def _spans_of_keys(keys: Sequence[Any]) -> Rows:
    """Return the first position of each run of equal keys and the one after its last, (N, 2)."""
    starts = [place for place, key in enumerate(keys) if not place or key != keys[place - 1]]
    return np.stack([starts, [*starts[1:], len(keys)]], axis=1).astype(np.int64)


def _spans_with_views(dataset: LatentDataset, spans: Rows, views: Sequence[str]) -> Rows:
    """Return the spans that have all of `views`."""
    if not views:
        return spans
    names = dataset.row_views or []
    keep = [{*views} <= {*names[start:stop]} for start, stop in spans.tolist()]
    return np.compress(keep, spans, axis=0)


def _number_labels(dataset: LatentDataset, label: str) -> tuple[list[str], Rows | None]:
    """Return the class names by number, and the class number of each row."""
    if not label:
        return [], None
    values = [row[label] for row in dataset.row_columns()]
    missing = next((place for place, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise StoreError(
            f"{dataset.folder}: {dataset.keys[missing]!r} has no {label!r}, the attribute that"
            " names a sample's class; give it one in the source, or leave the sample out"
        )
    if all(isinstance(value, int) and value >= 0 for value in values):
        if max(values) >= MOST_LABELS:
            raise StoreError(
                f"{dataset.folder}: label {max(values)} of the attribute {label!r} is too large;"
                f" expected numbers from 0 to {MOST_LABELS - 1}, as many as there are classes; name"
                " another attribute with label=NAME"
            )
        return [str(number) for number in range(max(values) + 1)], np.array(values)
    names = sorted({str(value) for value in values})
    numbers = {name: number for number, name in enumerate(names)}
    return names, np.array([numbers[str(value)] for value in values])


def _check_texts(text: LatentDataset, keys: Sequence[str]) -> None:
    """Raise StoreError if the dataset of text embeddings lacks one of the keys."""
    known = set(text.keys)
    missing = [key for key in keys if key not in known]
    if missing:
        raise StoreError(
            f"{text.folder} has no text embedding of {missing[0]!r} (and {len(missing) - 1} more"
            f" of {len(keys)}); encode the captions of the same source"
        )


def _only_tensors(row: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in row.items() if isinstance(value, Tensor)}

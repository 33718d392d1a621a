"""Latent datasets joined by key, such as images with the embeddings of their captions by two text
encoders.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from latentkit.reading.batches import BatchedRows
from latentkit.reading.dataset import LatentDataset
from latentkit.reading.draws import Draw
from latentkit.reading.selecting import hash_rows
from latentkit.runtime.buffers import BufferPool
from latentkit.store.columns import Rows
from latentkit.store.contents import counted

On = Literal["key", "stem"] | Callable[[str], str]

SPAN = re.compile(r"#t=[0-9.]+,[0-9.]+$")
"""End of the key of a span of a video or audio file."""

COMPRESSION_ENDINGS = (".gz", ".bz2", ".xz", ".zst")
"""Endings that follow another ending."""


def join_datasets(
    *datasets: LatentDataset, names: Sequence[str | None] | None = None, on: On = "key"
) -> JoinedDataset:
    """Join two or more datasets on the keys that all of them have.

    Args:
        datasets: rows, views, buckets and order are those of the first; the others have one row per
            key. One with views="random" that has all views of the first returns the same view as
            the first; a key that lacks one of them is left out.
        names: name of each dataset's tensor; None, or None in the sequence, is its `layout.name`.
            The mask's name is that name and "_mask".
        on: what rows must have in common: their "key"; its "stem", which is the key without the
            file's ending (`a/1.png` and `a/1.wav` have `a/1`; the span of a part of a file stays,
            so `a/1.mp4#t=0,2` has `a/1#t=0,2`); or the result of a function of the key.

    Raises:
        ValueError: no key is in all datasets, a later dataset has several rows for one key, two
            keys of one dataset have the same join value, or a name occurs twice.
    """
    return JoinedDataset(*datasets, names=names, on=on)


class JoinedDataset(BatchedRows):
    """Result of `join_datasets`: the tensor and the columns of each dataset, and key and view of
    the first.

    Rows of one batch are in one bucket of the first dataset. In later datasets they have the same
    shape except for the ragged axis, along which they are padded.

    Attributes:
        datasets: all datasets, in the order given.
        first: the first dataset.
        names: name of the tensor of each dataset.
        left_out: how many keys of each dataset are left out because others lack them.
    """

    def __init__(
        self, *datasets: LatentDataset, names: Sequence[str | None] | None = None, on: On = "key"
    ) -> None:
        _check_datasets(datasets)
        join_value = _make_join_function(on)
        self.datasets = datasets
        self.first = datasets[0]
        super().__init__(self.first.seed, "+".join(data.index_hash for data in datasets))
        self.names = _checked_names(datasets, names)
        shared = [_join_values(data, join_value) for data in datasets]
        places = [{name: place for place, name in enumerate(found)} for found in shared[1:]]
        for data, place_of in zip(datasets[1:], places, strict=True):
            if len(place_of) < len(data):
                raise ValueError(
                    f"{data.folder} has several rows for a key; open it with one view, or"
                    " views='random'"
                )
        matching_rows = [self.first.matching_rows(data, join_value) for data in datasets[1:]]
        has_twins = np.ones(len(self.first), bool)
        for _, there in filter(None, matching_rows):
            has_twins &= there
        wanted = shared[0]
        items = np.flatnonzero(has_twins).tolist()
        for place_of in places:
            items = [item for item in items if wanted[item] in place_of]
        if not items:
            what = "key" if on == "key" else "name" if callable(on) else on
            raise ValueError(
                f"{_join_with_and(data.folder for data in datasets)} have no {what} in common"
            )
        partners = ([place_of[wanted[item]] for item in items] for place_of in places)
        self._places: list[Rows] = [np.array(rows, np.int64) for rows in (items, *partners)]
        self._twins = [None if found is None else found[0] for found in (None, *matching_rows)]
        kept = len({wanted[item] for item in items})
        self.left_out = tuple(len(set(found)) - kept for found in shared)
        self._on = on if isinstance(on, str) else getattr(on, "__name__", repr(on))
        if on != "key":  # a state must not be taken for one of other pairs
            self.index_hash = f"{self.index_hash}+{hash_rows(*self._places)}"
        self._whole_hash = self.index_hash

    def __repr__(self) -> str:
        parts = zip(self.datasets, self.names, self.left_out, strict=True)
        lines = [
            f"  {name}: {data.folder}" + (f", {counted(left, 'key')} left out" if left else "")
            for data, name, left in parts
        ]
        return "\n".join([f"JoinedDataset of {counted(len(self), 'row')}, on {self._on}", *lines])

    def __len__(self) -> int:
        return len(self._places[0])

    @cached_property
    def keys(self) -> list[str]:
        """Return the key of every row, in order."""
        keys = self.first.keys
        return [keys[place] for place in self._places[0]]

    def row_columns(self) -> Iterator[dict[str, Any]]:
        """Return key and view of the first dataset, and the columns of all. If several have a
        column of one name, it is that of the dataset opened with it, or else of the first that has
        it.

        Raises:
            StoreError: an index is missing or damaged, or has changed since it was opened.
        """
        rows = [list(data.row_columns()) for data in self.datasets]
        for places in zip(*(places.tolist() for places in self._places), strict=True):
            found = [own[place] for own, place in zip(rows, places, strict=True)]
            columns: dict[str, Any] = {}
            for one in reversed(found):
                columns |= one
            for data, one in zip(self.datasets, found, strict=True):
                columns |= {name: one[name] for name in data.columns}
            if "view" not in found[0]:
                columns.pop("view", None)
            yield columns

    def _row_views(self) -> list[str] | None:
        views = self.first._row_views()
        return None if views is None else [views[place] for place in self._places[0]]

    def _select(self, items: Rows) -> Self:
        places = [places[items] for places in self._places]
        part = self._copy(f"{self._whole_hash}:{hash_rows(*places)}")
        part._places = places
        return part

    def groups(self, epoch: int) -> tuple[Rows, npt.NDArray[np.integer]]:
        """Return a number that is equal for rows that may be in one batch, ascending with the first
        dataset's buckets, and the first dataset's unit number.
        """
        chosen = self._choose(slice(None), Draw(epoch))
        buckets, units = self.first.groups_of_rows(chosen[0])
        others = zip(self.datasets[1:], chosen[1:], strict=True)
        groups = (buckets, *(data.stackable_groups(rows) for data, rows in others))
        return np.ravel_multi_index(groups, [int(group.max()) + 1 for group in groups]), units

    def load(self, items: Rows, draw: Draw, pool: BufferPool) -> dict[str, Any]:
        """Return the rows at some positions as one batch.

        Raises:
            ValueError: in one of the datasets, the rows are in several buckets with different
                shapes.
            StoreError: a unit is missing or damaged.
        """
        batch: dict[str, Any] = {}
        parts = zip(self.datasets, self.names, self._choose(items, draw), strict=True)
        for place, (data, name, rows) in enumerate(parts):
            loaded = data.load_rows(rows, self._places[place][items], draw.of_joined(place), pool)
            batch |= {name + end: loaded[data.output_name + end] for end in _name_suffixes(data)}
            batch |= {
                label: loaded[label]
                for label in (*data.columns, *(() if place else ("key", "view")))
            }
        return batch

    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will read these rows."""
        for data, rows in zip(self.datasets, self._choose(items, Draw(epoch)), strict=True):
            data.will_need_rows(rows)

    def _choose(self, items: Rows | slice, draw: Draw) -> list[Rows]:
        """Return the index row in each dataset for some positions."""
        chosen: list[Rows] = []
        for place, (data, matching_rows) in enumerate(zip(self.datasets, self._twins, strict=True)):
            if matching_rows is None:
                chosen.append(data.choose(self._places[place][items], draw.of_joined(place)))
            else:
                chosen.append(matching_rows[chosen[0]])
        return chosen


def stem_of(key: str) -> str:
    """Return a key without the file's ending, but with its span if it has one."""
    span = SPAN.search(key)
    whole = key if span is None else key[: span.start()]
    stem, ending = os.path.splitext(whole)
    if ending.lower() in COMPRESSION_ENDINGS:
        stem = os.path.splitext(stem)[0]
    return stem + (span[0] if span else "")


def _make_join_function(on: On) -> Callable[[str], str] | None:
    """Return the function that converts a key to its join value; None if that is the key itself."""
    if on not in ("key", "stem") and not callable(on):
        raise ValueError(f"on must be 'key', 'stem' or a function of a key, got {on!r}")
    return stem_of if on == "stem" else None if isinstance(on, str) else on


def _join_values(data: LatentDataset, join_value: Callable[[str], str] | None) -> list[str]:
    """Return each row's join value."""
    if join_value is None:
        return data.keys
    names, key_of = [], dict[str, str]()
    for key in data.keys:
        name = join_value(key)
        if not isinstance(name, str):
            raise ValueError(
                f"the function given as on= must return a text for each key; for {key!r} it"
                f" returned {name!r}"
            )
        if key_of.setdefault(name, key) != key:
            raise ValueError(
                f"{data.folder}: {key_of[name]!r} and {key!r} both give {name!r}, so the row to"
                " join is ambiguous. Pass on= a function that gives each row a key of its own,"
                " or remove one of the two"
            )
        names.append(name)
    return names


def _check_datasets(datasets: Sequence[LatentDataset]) -> None:
    """Check that there are at least two datasets and that none is a joined one."""
    if len(datasets) < 2:
        raise ValueError(f"join takes two or more latent datasets, got {len(datasets)}")
    for data in datasets:
        if isinstance(data, JoinedDataset):
            raise ValueError(
                "a joined dataset can't be joined again; give all datasets at once: join(a, b, c),"
                " not join(join(a, b), c)"
            )
        if not isinstance(data, LatentDataset):
            raise ValueError(
                f"join takes latent datasets as latentkit.open gives them, got {data!r}"
            )


def _checked_names(
    datasets: Sequence[LatentDataset], names: Sequence[str | None] | None
) -> tuple[str, ...]:
    """Return a name for each dataset's tensor that nothing else in a row has."""
    asked = (None,) * len(datasets) if names is None else names
    are_names = not isinstance(asked, str) and all(
        name is None or (isinstance(name, str) and name) for name in asked
    )
    if not are_names or len(asked) != len(datasets):
        raise ValueError(
            f"names must have a name or None for each of the {len(datasets)} datasets, got"
            f" {names!r}"
        )
    own = tuple(
        data.layout.name if name is None else name
        for data, name in zip(datasets, asked, strict=True)
    )
    pairs = list(zip(datasets, own, strict=True))
    tensors = Counter(name + end for data, name in pairs for end in _name_suffixes(data))
    uses = tensors + Counter(
        ["key", "view", *(column for data in datasets for column in data.columns)]
    )
    twice = [name for name, count in uses.items() if count > 1]
    if twice:
        here = _join_with_and(f"{data.folder} has {[name, *data.columns]}" for data, name in pairs)
        rows = "both" if len(datasets) == 2 else "all"
        advice = (
            "give each tensor a name with names="
            if twice[0] in tensors
            else "open only one of them with that column"
        )
        raise ValueError(
            f"{here}, in addition to key and view: in a row of {rows}, {twice[0]!r} would occur"
            f" twice; {advice}"
        )
    return own


def _name_suffixes(dataset: LatentDataset) -> tuple[str, ...]:
    """Return what follows the dataset's name in the names of its tensors."""
    return ("", "_mask") if dataset.has_masks else ("",)


def _join_with_and(parts: Iterable[object]) -> str:
    return " and ".join(map(str, parts))

"""Chooses rows of a dataset: by position, by key, by columns, or by a split that is stable when the
source grows.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self, SupportsIndex

import fsspec
import numpy as np
import numpy.typing as npt

from latentkit.runtime.key_errors import suggest
from latentkit.store.columns import Rows

Keys = str | os.PathLike[str] | Iterable[str]
"""Path of a text file with one key per line, or the keys themselves."""

Predicate = Callable[[Mapping[str, Any]], object]

RowIndex = (
    SupportsIndex
    | str
    | tuple[str, str]
    | slice
    | Sequence[int]
    | Sequence[bool]
    | npt.NDArray[np.integer]
    | npt.NDArray[np.bool_]
)
"""What the brackets of a dataset accept; also integer and boolean tensors."""

MAX_KEYS_SUGGESTED = 10_000
"""Number of keys that are searched for one similar to an unknown key."""


class SelectableRows(ABC):
    """Rows by position, of which some can be selected. Each selection is a dataset like the
    whole.
    """

    index_hash: str
    """Changes if the rows or their order change."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def keys(self) -> list[str]:
        """Return the key of every row, in order."""

    @abstractmethod
    def row_columns(self) -> Iterator[dict[str, Any]]:
        """Return, for each row in order, "key", "view" (unless views="random" draws it) and all
        columns of the dataset, including those it wasn't opened with.

        Raises:
            StoreError: the index is missing or damaged, or has changed since it was opened.
        """

    @abstractmethod
    def _row_views(self) -> list[str] | None:
        """Return the view of every row, in order; None if views are drawn."""

    @abstractmethod
    def _select(self, items: Rows) -> Self:
        """Return a copy with only the rows at these positions, with its own `index_hash` and
        epochs.
        """

    def _skipped_keys(self) -> Collection[str]:
        """Return known keys that have no row."""
        return ()

    # ------------------------------------------------------------ subsets

    def select(self, rows: RowIndex) -> Self:
        """Return a dataset of some rows, in the order given.

        It has `batches()`, states, ranks, buckets and `decode` like the whole dataset, but its own
        shuffles and draws: it refuses the state of the whole or of other rows. `statistics` stay
        those of the whole. A row that is given twice occurs twice.

        Args:
            rows: positions (negative ones count from the end), a slice, or one boolean per row.

        Raises:
            IndexError: a position is outside the dataset, or the number of booleans isn't that of
                the rows.
            ValueError: no row is selected.
        """
        found = self.positions(rows)
        return self._select(np.array([found]) if isinstance(found, int) else found)

    def select_keys(self, keys: Iterable[str]) -> Self:
        """Return a dataset of all rows with these keys, in their order here; otherwise like
        `select`.

        Keys of skipped samples are ignored.

        Raises:
            ValueError: a key is unknown, or no row is left.
        """
        wanted = set(keys)
        unknown = wanted.difference(self.keys)
        if unknown and (unknown := unknown.difference(self._skipped_keys())):
            first = min(unknown)
            raise ValueError(
                f"no row here has the key {first!r}{suggest(first, self.keys[:MAX_KEYS_SUGGESTED])}"
                f" ({len(unknown)} of {len(wanted)} keys are not there)"
            )
        return self._select(
            self._require_some([i for i, key in enumerate(self.keys) if key in wanted])
        )

    def filter(self, predicate: Predicate | None = None, /, **equal: Any) -> Self:
        """Return a dataset of the rows for which `predicate` is true and all `equal` hold, in
        order; otherwise like `select`.

        Args:
            predicate: called with a mapping of a row's key, view and all columns, including those
                that the dataset wasn't opened with: `data.filter(lambda row: row["width"] >= 512)`.
                With views="random" there is no view.
            equal: columns and the value that each must have: `data.filter(label="cat")`.

        Raises:
            ValueError: a column doesn't exist, or no row is left.
        """
        if predicate is None and not equal:
            raise ValueError("filter needs a function of a row's columns, or column=value")
        items = [
            place
            for place, row in enumerate(self.row_columns())
            if _matches(row, equal) and (predicate is None or predicate(row))
        ]
        return self._select(self._require_some(items))

    def split(self, fraction: float, *, by: str = "key", seed: int = 0) -> tuple[Self, Self]:
        """Return two datasets: about `fraction` of the rows, and the others; otherwise like
        `select`.

        A row's side depends only on `seed` and its value of `by`. So the views of a sample are on
        the same side, and a sample stays on its side when the source grows.

        Args:
            fraction: between 0 and 1; the exact number of rows is random.
            by: "key", or a column whose equal values must stay together, such as a scene's id; rows
                without a value stay together.
            seed: another seed makes another split.

        Raises:
            ValueError: the column doesn't exist, the fraction is out of range, or a side is empty.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"a split needs a fraction between 0 and 1, got {fraction}")
        values = self.keys if by == "key" else [_value(row, by) for row in self.row_columns()]
        texts = [_text(value) for value in values]
        place_of = {text: _hash_to_fraction(text, seed) for text in dict.fromkeys(texts)}
        is_first = np.array([place_of[text] < fraction for text in texts])
        if is_first.all() or not is_first.any():
            raise ValueError(
                f"split({fraction}, by={by!r}, seed={seed}) of {len(self)} rows with"
                f" {len(place_of)} values of {by!r} leaves one side empty; take another fraction or"
                " seed"
            )
        return self._select(np.flatnonzero(is_first)), self._select(np.flatnonzero(~is_first))

    # ------------------------------------------------------------ positions

    def positions(self, index: RowIndex) -> int | Rows:
        """Return the position of one row (given an integer, a key, or a key and a view), or the
        positions of several. Positions start at 0.

        Raises:
            KeyError: the key doesn't exist, or not with that view.
            IndexError: a position is outside the dataset, or the number of booleans isn't that of
                the rows.
            ValueError: no row at all.
            TypeError: the index has another type.
        """
        if isinstance(index, str):
            return self._find(index, self._place_of_key)
        if isinstance(index, tuple) and len(index) == 2 and {*map(type, index)} == {str}:
            return self._find(index, self._place_of_view)
        if isinstance(index, slice):
            return self._require_some(range(len(self))[index])
        values = np.asarray(index if hasattr(index, "__len__") else _integer(index))
        if values.dtype == np.bool_ and values.ndim == 1:
            if len(values) != len(self):
                raise IndexError(
                    f"{len(values)} booleans for a latent dataset of {len(self)} rows; expected one"
                    " for each"
                )
            return self._require_some(np.flatnonzero(values))
        if values.ndim > 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise _no_rows(index)
        wrong = values[(values < -len(self)) | (values >= len(self))]
        if wrong.size:
            raise IndexError(f"row {wrong.flat[0]} of a latent dataset of {len(self)}")
        found = values.astype(np.int64) % len(self)
        return self._require_some(found) if values.ndim else int(found)

    def _require_some(self, items: Sequence[int] | Rows) -> Rows:
        """Return the positions, of which there must be at least one."""
        if not len(items):
            raise ValueError(f"none of the {len(self)} rows is chosen; a dataset has at least one")
        return np.asarray(items, np.int64)

    def _find(self, name: Any, places: Mapping[Any, int]) -> int:
        """Return the first position of a key, or of a key and a view."""
        if name in places:
            return places[name]
        key, view = (name, None) if isinstance(name, str) else name
        if key not in self._place_of_key:
            near = suggest(key, list(self._place_of_key)[:MAX_KEYS_SUGGESTED])
            raise KeyError(f"no row here has the key {key!r}{near}")
        if not places:
            raise KeyError(f"no view {view!r} of {key!r}: with views='random' the view is drawn")
        raise KeyError(f"no row here has the view {view!r} of the key {key!r}")

    @cached_property
    def _place_of_key(self) -> Mapping[str, int]:
        """Return the first position of each key."""
        keys = self.keys
        return dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))

    @cached_property
    def _place_of_view(self) -> Mapping[tuple[str, str], int]:
        """Return the first position of each key and view; empty if views are drawn."""
        views = self._row_views()
        pairs = [] if views is None else list(zip(self.keys, views, strict=True))
        return dict(zip(reversed(pairs), range(len(pairs) - 1, -1, -1), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without cached values."""
        made = ("keys", "_place_of_key", "_place_of_view")
        return {name: value for name, value in self.__dict__.items() if name not in made}


def hash_rows(*arrays: npt.NDArray[Any]) -> str:
    """Return a hash of which rows are selected, in their order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_keys(keys: Keys) -> list[str]:
    """Return the keys in a text file (UTF-8, one per line, empty lines ignored) or those given,
    each once.

    Raises:
        ValueError: the file doesn't exist or isn't text.
        TypeError: a key isn't text.
    """
    if not isinstance(keys, str | os.PathLike):
        listed = list(dict.fromkeys(keys))
        if wrong := [key for key in listed if not isinstance(key, str)]:
            raise TypeError(f"keys are texts, got {wrong[0]!r:.80}")
        return listed
    try:
        with fsspec.open(os.fspath(keys), "r", encoding="utf-8-sig", newline="") as file:
            lines = file.read().replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"keys={os.fspath(keys)!r}: {error}; expected a text file with one key per line, or a"
            " list of keys"
        ) from error
    return [line for line in dict.fromkeys(lines) if line]


def _integer(index: object) -> int:
    try:
        return operator.index(index)  # type: ignore[arg-type]
    except TypeError as error:
        raise _no_rows(index) from error


def _no_rows(index: object) -> TypeError:
    """Return the error for an index that names no rows."""
    return TypeError(
        f"rows are an integer, a key, (key, view), a slice, integers or booleans; got {index!r:.80}"
    )


def _value(row: Mapping[str, Any], name: str) -> Any:
    """Return a row's value of a column."""
    if name not in row:
        drawn = "; with views='random' the view is drawn" if name == "view" else ""
        raise ValueError(f"no column {name!r}; available: {list(row)}{drawn}")
    return row[name]


def _matches(row: Mapping[str, Any], equal: Mapping[str, Any]) -> bool:
    """Return whether a row has all these values."""
    return [_value(row, name) for name in equal] == list(equal.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _hash_to_fraction(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends only on text and seed."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

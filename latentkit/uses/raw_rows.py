"""Reads raw latents of one shape from a latent dataset, in batches, for fitting and searching."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentkit.contracts.encoder_description import LOGVAR_RANGE
from latentkit.errors import StoreError
from latentkit.store.dataset_json import read_dataset, read_index

if TYPE_CHECKING:
    from latentkit.reading.dataset import LatentDataset
    from latentkit.store.columns import Rows

BATCH_VALUES = 2**22
"""Values of a batch that is read at once: 16 MiB in float32."""

HOLDOUT_SHARE = 10


@dataclass(frozen=True)
class RawRows:
    """Rows of a latent dataset, as raw latents (N, C, ...) float32 of one shape.

    Args:
        items: positions of the rows in the dataset.
        draws: whether `batches` draws from each posterior instead of giving its mean; every pass
            gives the same draws.
    """

    dataset: LatentDataset
    items: Rows
    draws: bool
    seed: int
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.items)

    def batches(self) -> Iterator[Tensor]:
        """Yield all rows, (N, C, ...)."""
        for _, latents in self.numbered_batches():
            yield latents

    def numbered_batches(self) -> Iterator[tuple[Rows, Tensor]]:
        """Yield positions of rows in the dataset, and their latents (N, C, ...)."""
        for items in self.item_batches():
            mean, logvar = self.moments(items)
            if logvar is not None and self.draws:
                yield items, self._draw(mean, logvar, int(items[0]))
            else:
                yield items, mean

    def item_batches(self) -> Iterator[Rows]:
        """Yield positions of rows in the dataset, a batch at a time."""
        size = max(1, BATCH_VALUES // int(np.prod(self.shape)))
        for start in range(0, len(self.items), size):
            yield self.items[start : start + size]

    def moments(self, items: Rows) -> tuple[Tensor, Tensor | None]:
        """Return mean and log-variance (None where there is none) of rows, (N, C, ...)."""
        stored, mask, _ = self.dataset.load_stored(items)
        if mask is not None and not bool(mask.all()):
            raise StoreError(
                f"{self.dataset.folder}: some latents have padding, as their items are shorter than"
                " the others; expected latents without. Encode with a length that all items have,"
                " or without the short ones (of audio modality.with.on_short: skip)"
            )
        values = stored.float()
        if not self.dataset.has_moments:
            return values, None
        mean, logvar = values.chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def find(self, keys: Sequence[str]) -> Rows:
        """Return the position of the first row of each key.

        Raises:
            StoreError: a key isn't there; the message names similar ones.
        """
        names = self.dataset.keys
        places = {names[item]: item for item in reversed(self.items.tolist())}
        for key in keys:
            if key not in places:
                near = difflib.get_close_matches(key, places, 3) or list(places)[:3]
                raise StoreError(
                    f"{self.dataset.folder}: no item has the key {key!r}; expected one such as"
                    f" {', '.join(map(repr, near))}"
                )
        return np.array([places[key] for key in keys], dtype=self.items.dtype)

    def some(self, limit: int) -> Tensor:
        """Return up to `limit` rows, spread evenly, (N, C, ...)."""
        return torch.cat(list(self.spread(limit).batches()))

    def spread(self, limit: int) -> RawRows:
        """Return up to `limit` of the rows, spread evenly."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(limit, len(self))).astype(int))
        return replace(self, items=self.items[chosen])

    def split(self, one_in: int = HOLDOUT_SHARE) -> tuple[RawRows, RawRows]:
        """Return most of the keys to fit to, and one in `one_in`, the same in each run.

        Raises:
            StoreError: all rows have one key.
        """
        keys = self.dataset.keys
        names = [keys[item] for item in self.items.tolist()]
        ordered = sorted(set(names), key=lambda key: (zlib.crc32(key.encode()), key))
        if len(ordered) < 2:
            raise StoreError(f"{self.dataset.folder}: expected at least 2 items to fit to, got 1")
        held_out = set(ordered[:: max(2, min(one_in, len(ordered)))])
        is_out = np.array([name in held_out for name in names])
        return replace(self, items=self.items[~is_out]), replace(self, items=self.items[is_out])

    def split_by(self, column: str) -> dict[Any, RawRows]:
        """Return the rows of each value of an attribute, in the order of the values; rows without
        one are left out.

        Raises:
            StoreError: a value has one row, or no row has one.
        """
        all_values = [row.get(column) for row in self.dataset.row_columns()]
        values = [all_values[item] for item in self.items.tolist()]
        known = sorted({value for value in values if value is not None}, key=str)
        places = {value: [n for n, one in enumerate(values) if one == value] for value in known}
        single = [repr(value) for value, found in places.items() if len(found) < 2]
        if single or not known:
            problem = f"{len(single)} values have one item ({', '.join(single[:5])})"
            raise StoreError(
                f"{self.dataset.folder}: {column}: expected values with at least 2 items each, and"
                f" {problem if single else 'no item has one'}. Filter these items out, or choose"
                " another attribute"
            )
        return {value: replace(self, items=self.items[found]) for value, found in places.items()}

    def _draw(self, mean: Tensor, logvar: Tensor, first: int) -> Tensor:
        """Return a draw of each posterior, decided by seed and position of the first row."""
        generator = torch.Generator().manual_seed((self.seed + 1_000_003 * (first + 1)) % 2**63)
        return mean + (logvar / 2).exp() * torch.randn(mean.shape, generator=generator)


def content_of(dataset: LatentDataset, keys: Collection[str] | None = None) -> set[str]:
    """Return the sha256 of the media of a dataset's items, or of those with some keys."""
    index = read_index(dataset.folder, read_dataset(dataset.folder), ["key", "content"])
    pairs = zip(index["key"].to_pylist(), index["content"].to_pylist(), strict=True)
    return {content for key, content in pairs if content and (keys is None or key in keys)}


def open_rows(dataset: LatentDataset, posterior: str, seed: int) -> RawRows:
    """Return all rows of a dataset.

    Args:
        posterior: "sample", "mean", or "auto": draws where posteriors are stored.

    Raises:
        StoreError: the latents are indices, of several shapes, or posteriors are asked for and
            not stored.
    """
    if dataset.layout.kind == "quantised":
        raise StoreError(
            f"{dataset.folder}: its latents are indices of a codebook; expected latents with values"
        )
    if posterior == "sample" and not dataset.has_moments:
        raise StoreError(
            f"{dataset.folder}: posterior: sample needs stored moments, and it has none."
            " Set posterior to mean, or encode with output.store: moments"
        )
    buckets = sorted(set(dataset.bucket_names(slice(None))))
    items = np.arange(len(dataset))
    groups = np.unique(dataset.stackable_groups(items))
    if len(groups) > 1:
        named = ", ".join(buckets[:5]) + (", …" if len(buckets) > 5 else "")
        raise StoreError(
            f"{dataset.folder}: latents of {len(buckets)} buckets ({named}); expected one shape."
            " Encode with a fixed size, or choose one bucket's keys"
        )
    rows = RawRows(dataset, items, dataset.has_moments and posterior != "mean", seed, ())
    return replace(rows, shape=tuple(rows.moments(items[:1])[0].shape[1:]))

"""`LatentDataset`: the result of `latentkit.open`. It needs no source media, encoder or plugin."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latentkit.contracts import Decodes, LatentLayout, Normalization, Remark
from latentkit.errors import DamagedError, EncoderError, StoreError
from latentkit.reading.batches import BatchedRows
from latentkit.reading.description import describe_dataset
from latentkit.reading.draws import Draw
from latentkit.reading.posterior import LatentMaker, Posterior, to_float32
from latentkit.reading.raw_latents import find_raw_latents
from latentkit.reading.rows import Codes, ReadableRows, Views
from latentkit.reading.selecting import Keys, read_keys
from latentkit.reading.stored_rows import StoredRows
from latentkit.runtime.buffers import BufferPool, as_tensor
from latentkit.runtime.device import choose_device
from latentkit.store.columns import Rows
from latentkit.store.contents import row_remarks, skipped_samples, source_remarks
from latentkit.store.dataset_json import DATASET, read_dataset, read_index
from latentkit.store.folder import Folder
from latentkit.store.mapped_unit import Array
from latentkit.store.open_folder import open_folder
from latentkit.store.ragged import pad, per_position_layout
from latentkit.store.unit_cache import Cache

OpenDecoder = Callable[[Folder, Mapping[str, str], str], Decodes]
"""Takes folder, fingerprint parts and device, and returns the encoder that made a dataset."""


def open_dataset(
    path: str | os.PathLike[str],
    posterior: Posterior | None = None,
    views: Views = "all",
    columns: str | Sequence[str] = (),
    seed: int = 0,
    cache: Cache = None,
    open_decoder: OpenDecoder | None = None,
    keys: Keys | None = None,
) -> LatentDataset:
    """Open the latent dataset at `path`, as `latentkit.open` does.

    Args:
        path, posterior, views, columns, seed, cache, keys: see `latentkit.open`.
        open_decoder: opens the decoder for `LatentDataset.decode`; None: the dataset can't decode.

    Raises:
        StoreError, ValueError: as `latentkit.open`.
    """
    folder = open_folder(os.fspath(path), cache)
    data = LatentDataset(folder, posterior, views, columns, seed, open_decoder)
    return data if keys is None else data.select_keys(read_keys(keys))


class LatentDataset(BatchedRows):
    """A map-style dataset of latents, normalized as their encoder's own trainers expect; see
    `open_dataset`.
    """

    def __init__(
        self,
        folder: Folder,
        posterior: Posterior | None,
        views: Views,
        columns: str | Sequence[str],
        seed: int,
        open_decoder: OpenDecoder | None = None,
    ) -> None:
        document = read_dataset(folder)
        super().__init__(seed, document["index"]["sha256"])
        self.folder = folder
        self.columns = (columns,) if isinstance(columns, str) else tuple(columns)
        self.fingerprint: str = document["fingerprint"]
        self.layout = LatentLayout(**_with_tuple_downscale(document["layout"]))
        self.normalization = Normalization(**document["normalization"])
        self.statistics: Mapping[str, Any] | None = document["statistics"]
        try:
            layout, normalization = per_position_layout(self.layout, self.normalization)
            self._make_latents = LatentMaker(normalization, layout)
        except (ValueError, TypeError) as error:
            raise DamagedError(
                f"{folder}/{DATASET}: the normalization doesn't fit the layout: {error}; restore"
                " the file from a copy, or repair the dataset with `latentkit verify --repair`"
            ) from error
        self._parts, self._store = document["parts"], document["store"]
        self.stored_dtype: str = document["dtype"]
        self.has_masks = self.layout.ragged_axis is not None or bool(document.get("masked"))
        self.posterior = self._check_posterior(posterior)
        self.index_name: str = document["index"]["name"]
        self._whole_hash = self.index_hash
        self._index = ReadableRows(folder, document, views, self.columns)
        self.num_whole = len(self._index)
        self._stored = StoredRows(folder, document, self.layout, self.tensor_name, self._index)
        self._scratch = BufferPool(False)
        self._open_decoder = open_decoder
        self._opened_decoder: tuple[str, Decodes] | None = None

    # ------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        return describe_dataset(self)

    @cached_property
    def keys(self) -> list[str]:
        """Return the key of every row, in order."""
        return self._index.keys()

    @property
    def views(self) -> list[str]:
        """Return the names of the views that rows have."""
        return self._index.view_names

    @property
    def row_views(self) -> list[str] | None:
        """Return the view of every row, in order; None if views are drawn."""
        return self._index.views()

    @property
    def draws_views(self) -> bool:
        """Return whether each row's view is drawn, as with views="random"."""
        return self._index.views() is None

    @property
    def skipped(self) -> dict[str, str]:
        """Return the reason for every sample (by key) that has no latent or lacks a view.

        Raises:
            StoreError: the index is missing or damaged.
        """
        return skipped_samples(
            read_index(self.folder, read_dataset(self.folder), ["key", "status", "reason"])
        )

    @property
    def remarks(self) -> list[Remark]:
        """Return the remarks of the source, then those of the modality on samples, by kind.

        Raises:
            StoreError: the index is missing or damaged.
        """
        document = read_dataset(self.folder)
        return [
            *source_remarks(document),
            *row_remarks(read_index(self.folder, document, ["key", "geometry.remarks"])),
        ]

    @property
    def has_moments(self) -> bool:
        """Return whether mean and logvar are stored."""
        return self.layout.kind == "gaussian" and self._store == "moments"

    @property
    def tensor_name(self) -> str:
        """Return the name of the stored tensor: "moments", "latent" or "indices"."""
        if self.layout.kind == "quantised":
            return "indices"
        return "moments" if self.has_moments else "latent"

    @property
    def output_name(self) -> str:
        """Return the name of the tensor in items and batches: "latent", or "moments" or "indices"
        as stored.
        """
        return (
            self.tensor_name
            if self.posterior == "moments" or self.layout.kind == "quantised"
            else "latent"
        )

    def moments(self, index: int | str | tuple[str, str]) -> dict[str, Tensor]:
        """Return {"mean", "logvar"} of one row, each (C, h, w), raw, without padding, in the stored
        dtype (float32 if int8 is stored).

        Args:
            index: a position, a key, or (key, view).

        Raises:
            ValueError: the dataset stores no moments.
            IndexError, KeyError: there is no such row.
        """
        if not self.has_moments:
            raise ValueError(
                f"{self.folder} stores no moments (kind {self.layout.kind}, store {self._store!r})"
            )
        place = self.positions(index)
        if not isinstance(place, int):
            raise TypeError(f"moments takes one row, got {index!r:.80}")
        item = np.array([place])
        rows = self.choose(item, self.item_draw(item))
        mean, logvar = self._as_stored(rows, BufferPool(False))[0][0].chunk(2)
        return {"mean": mean, "logvar": logvar}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the decoder, which can be opened again."""
        return super().__getstate__() | {"_opened_decoder": None}

    # ------------------------------------------------------------ some of its rows

    def _skipped_keys(self) -> Collection[str]:
        return self.skipped.keys()

    def row_columns(self) -> Iterator[dict[str, Any]]:
        """Return key, view (unless it is drawn) and all columns of each row; see `filter`.

        Raises:
            StoreError: the index is missing or damaged, or has changed since it was opened.
        """
        document = read_dataset(self.folder)
        if document["index"]["sha256"] != self._whole_hash:
            raise StoreError(f"{self.folder} has changed since it was opened. Open it again")
        index = read_index(self.folder, document, ["key", "view", "attributes"])
        return self._index.columns_in(index)

    def _row_views(self) -> list[str] | None:
        return self.row_views

    def _select(self, items: Rows) -> Self:
        index = self._index.only(items)
        part = self._copy(f"{self._whole_hash}:{index.hash()}")
        part._index, part._stored = index, self._stored.only(index)
        return part

    # ------------------------------------------------------------ batches

    def choose(self, items: Rows | slice, draw: Draw) -> Rows:
        """Return the index row for each position, with the draw's view if views are drawn."""
        return self._index.choose(items, self.seed, draw)

    def groups(self, epoch: int) -> tuple[Codes, Codes]:
        """Return the bucket number and the unit number of the row at each position."""
        return self.groups_of_rows(self.choose(slice(None), Draw(epoch)))

    def groups_of_rows(self, rows: Rows) -> tuple[Codes, Codes]:
        """Return the bucket number and the unit number of index rows."""
        return self._index.bucket_of_row[rows], self._index.unit_of_row[rows]

    def stackable_groups(self, rows: Rows) -> Codes:
        """Return a number for each index row, equal for rows that fit into one batch.

        Ragged rows of different lengths fit into one batch because they are padded. `groups` keeps
        similar lengths together only to reduce padding.

        Raises:
            StoreError: a unit is missing or damaged.
        """
        return self._stored.stackable_buckets()[self._index.bucket_of_row[rows]]

    def matching_rows(
        self, partner: LatentDataset, join_value: Callable[[str], str] | None = None
    ) -> tuple[Rows, npt.NDArray[np.bool_]] | None:
        """Return, for each index row here, the partner's row with the same key and view, and for
        each position whether every view that may be drawn has one.

        Return None if the datasets' views are unrelated. `join_value` converts a key to the value
        that must be the same.
        """
        matching_rows = self._index.matching_rows(partner._index, join_value)
        return (
            None
            if matching_rows is None
            else (matching_rows, self._index.lowest_per_position(matching_rows) >= 0)
        )

    def load(self, items: Rows, draw: Draw, pool: BufferPool) -> dict[str, Any]:
        """Return the rows at some positions as one batch.

        Raises:
            ValueError: the rows are in several buckets with different shapes.
            StoreError: a unit is missing or damaged.
        """
        return self.load_rows(self.choose(items, draw), items, draw, pool)

    def load_rows(self, rows: Rows, items: Rows, draw: Draw, pool: BufferPool) -> dict[str, Any]:
        """Return chosen index rows as one batch; `items` are their positions."""
        name = self.output_name
        values, mask = (
            self._latents(rows, items, draw, pool)
            if name == "latent"
            else self._as_stored(rows, pool)
        )
        batch = {name: values} if mask is None else {name: values, f"{name}_mask": mask}
        return {**batch, **self._index.labels(rows)}

    def load_stored(self, items: Rows) -> tuple[Tensor, Tensor | None, dict[str, list[Any]]]:
        """Return the rows at some positions as stored, raw: moments (N, 2C, ...), latents or
        indices, float32 if int8 is stored; their mask, if rows have one; and key, view and columns
        of each.

        Raises:
            ValueError: the rows have several shapes.
            StoreError: a unit is missing or damaged.
        """
        values, mask = self._as_stored(items, BufferPool(False))
        return values, mask, self._index.labels(items)

    def bucket_names(self, items: Rows | slice) -> list[str]:
        """Return the bucket of the row at each position, such as "256x320"."""
        names = self._index.buckets
        return [names[code] for code in self._index.bucket_of_row[items].tolist()]

    def places_in_index(self) -> Rows:
        """Return the row in the index file for each position."""
        return self._index.places_in_index()

    def will_need(self, items: Rows, epoch: int) -> None:
        """Tell the kernel that `load` will read these rows."""
        self.will_need_rows(self.choose(items, Draw(epoch)))

    def will_need_rows(self, rows: Rows) -> None:
        """Tell the kernel that `load_rows` will read these index rows."""
        self._stored.will_need(rows, self._means_only)

    def decode(self, latents: Tensor | Mapping[str, Any], device: str = "auto") -> Tensor:
        """Decode latents with the encoder that made them. (N, C, h, w), as in `data[i]`, become a
        float32 batch in the encoder's range, such as (N, 3, H, W) in [-1, 1].

        Args:
            latents: a batch, or one row, which gives one output (3, H, W). Either normalized
                latents; or stored moments (N, 2C, h, w), whose mean is decoded; or a mapping: an
                item, a batch, or the result of `moments`. On any device.
            device: device to decode on; "auto" is a GPU if there is one.

        Raises:
            ValueError: the shape isn't that of this dataset's latents, or the mapping contains
                none.
            FingerprintError: the encoder's weights are no longer those that made this dataset.
            EncoderError: the encoder can't be loaded, or can't decode.
        """
        is_twice = math.prod(self.normalization.fold.values()) == 2
        takes_moments = self.has_moments and (self.posterior == "moments" or not is_twice)
        raw, is_single = find_raw_latents(latents, self.layout, self.normalization, takes_moments)
        decoded = self._decoder(device).decode(raw)
        return decoded[0] if is_single else decoded

    # ------------------------------------------------------------ inside

    @property
    def _means_only(self) -> bool:
        """Return whether logvar isn't read."""
        return self.has_moments and self.posterior == "mean"

    def _latents(
        self, rows: Rows, items: Rows, draw: Draw, pool: BufferPool
    ) -> tuple[Tensor, Tensor | None]:
        """Return latents of index rows, normalized, and their mask."""
        draws = self.has_moments and not self._means_only
        if self.layout.ragged_axis is None:
            stored, scales = self._stored.gather(rows, self._scratch, self._means_only)
            noise = draw.noise(self.seed, items) if draws else None
            return self._make_latents(
                self._to_stored_dtype(stored), scales, noise, pool
            ), self._mask(rows)
        stored, scales, lengths = self._stored.gather_ragged(rows, self._scratch, self._means_only)
        noise = draw.noise(self.seed, items, lengths) if draws else None
        return self._padded(
            self._make_latents(self._to_stored_dtype(stored), scales, noise, self._scratch).numpy(),
            lengths,
            pool,
        )

    def _as_stored(self, rows: Rows, pool: BufferPool) -> tuple[Tensor, Tensor | None]:
        """Return moments (N, 2C, h, w), latents (N, C, h, w) or indices in the stored dtype
        (float32 if int8 is stored), and their mask.
        """
        is_ragged, lengths = self.layout.ragged_axis is not None, None
        raw = self._scratch if is_ragged or self.stored_dtype == "int8" else pool
        if is_ragged:
            stored, scales, lengths = self._stored.gather_ragged(rows, raw)
        else:
            stored, scales = self._stored.gather(rows, raw)
        if scales is not None:
            out = (self._scratch if is_ragged else pool).get(stored.shape, np.float32)
            to_float32(torch.from_numpy(stored), scales, out)
            stored = out
        return (
            (self._to_stored_dtype(stored), self._mask(rows))
            if lengths is None
            else self._padded(stored, lengths, pool)
        )

    def _padded(self, positions: Array, lengths: Rows, pool: BufferPool) -> tuple[Tensor, Tensor]:
        """Return ragged rows padded with zeros at the end of their axis, and a mask of the
        positions that aren't padding.
        """
        rows, mask = pad(positions, lengths, pool)
        axis = self.layout.axes.index(self.layout.ragged_axis or "")
        return self._to_stored_dtype(rows).movedim(1, axis + 1), torch.from_numpy(mask)

    def _mask(self, rows: Rows) -> Tensor | None:
        return torch.from_numpy(self._stored.gather_masks(rows)) if self.has_masks else None

    def _to_stored_dtype(self, stored: Array) -> Tensor:
        """Return stored values as a tensor; bfloat16 is stored as 16-bit integers."""
        tensor = as_tensor(stored)
        return tensor.view(torch.bfloat16) if stored.dtype == np.uint16 else tensor

    def _decoder(self, device: str) -> Decodes:
        """Return the encoder that made the dataset, opened for a device. The last one is kept."""
        if self._open_decoder is None:
            raise EncoderError(f"{self.folder} was opened without a decoder; use latentkit.open")
        if self._opened_decoder is None or self._opened_decoder[0] != device:
            decoder = self._open_decoder(self.folder, self._parts, choose_device(device))
            self._opened_decoder = device, decoder
        return self._opened_decoder[1]

    def _check_posterior(self, posterior: Posterior | None) -> Posterior:
        """Return the posterior to use, or refuse one that the dataset doesn't store."""
        if posterior not in (None, "sample", "mean", "moments"):
            raise ValueError(f"posterior must be 'sample', 'mean' or 'moments', got {posterior!r}")
        if posterior in ("sample", "moments") and not self.has_moments:
            stored = f"kind {self.layout.kind}, store {self._store!r}"
            raise ValueError(
                f"posterior={posterior!r} needs stored moments; {self.folder} has {stored}"
            )
        return posterior or ("sample" if self.has_moments else "mean")


def _with_tuple_downscale(layout: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout with a tuple as its downscale, which JSON stores as a list."""
    downscale = layout["downscale"]
    return {**layout, "downscale": tuple(downscale) if isinstance(downscale, list) else downscale}

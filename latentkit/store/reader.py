"""`LatentDataset`: what `latentkit.open` gives. Nothing here needs the source media, the encoder or a plugin."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from latentkit.buffers import BufferPool
from latentkit.contracts import Decodes, LatentLayout, Normalization
from latentkit.errors import EncoderError, FingerprintError, StoreError
from latentkit.store.folder import Folder, open_folder
from latentkit.store.index import read_dataset, read_index
from latentkit.store.loader import Batches
from latentkit.store.mapped import Array, MappedUnit, take_rows
from latentkit.store.order import Shuffle, Tail
from latentkit.store.plan import counting_parts
from latentkit.store.posterior import Normalizer, Posterior, draw

Rows = npt.NDArray[np.int64]
Views = Literal["all", "random"] | Sequence[str]

RESERVED_NAMES = ("key", "view", "latent", "moments", "indices")
"""What items and batches hold besides columns."""

ITEM_DRAW = 1 << 40
"""Added to a row's number where it seeds the draw of a single item, so that no batch shares its noise."""


def open_dataset(
    path: str | os.PathLike[str],
    posterior: Posterior | None = None,
    views: Views = "all",
    columns: Sequence[str] = (),
    seed: int = 0,
) -> LatentDataset:
    """The latent dataset at `path`.

    Args:
        path: folder that `encode` wrote.
        posterior: "sample" draws from the posterior, anew each epoch; "mean"; "moments" gives them as stored, raw, under the
            name "moments". None: "sample" where there are moments, else "mean", which is the latent as stored.
        views: "all" gives a row per sample and view, a list only those views, "random" a row per sample whose view is drawn each epoch.
        columns: attributes to give besides key and view, such as ["text"].
        seed: of all draws and shuffles.

    Raises:
        StoreError: missing, unfinished or damaged.
        ValueError: a posterior that isn't stored, a view or column that isn't there.
    """
    return LatentDataset(open_folder(os.fspath(path)), posterior, views, columns, seed)


class LatentDataset:
    """A map-style dataset of latents, normalised as their encoder's own trainers expect; see `open_dataset`."""

    def __init__(self, folder: Folder, posterior: Posterior | None, views: Views, columns: Sequence[str], seed: int) -> None:
        self.folder = folder
        self.columns = tuple(columns)
        self.seed = seed
        self.epoch = self.epochs_set = 0
        document = self._document = read_dataset(folder)
        self.fingerprint: str = document["fingerprint"]
        self.layout = LatentLayout(**_tupled(document["layout"]))
        self.normalization = Normalization(**document["normalization"])
        self.statistics: Mapping[str, Any] | None = document["statistics"]
        self.index_hash: str = document["index"]["sha256"]
        self.posterior = self._check_posterior(posterior)
        self._normalize = Normalizer(self.normalization, self.layout)
        self._units: dict[int, MappedUnit] = {}
        self._opened_decoder: Decodes | None = None
        self._pool = BufferPool(False)
        self._drawn: tuple[int, Rows] | None = None
        self._counts: Rows | None = None
        self._load_index(views)

    # ------------------------------------------------------------ what is in it

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def keys(self) -> list[str]:
        """Key of every row, in order."""
        return self._table["key"].take(pa.array(self._starts)).to_pylist()  # type: ignore[no-any-return]

    @property
    def has_moments(self) -> bool:
        """Whether mean and logvar are stored."""
        return self.layout.kind == "gaussian" and self._document["store"] == "moments"

    @property
    def tensor_name(self) -> str:
        """Name of the stored tensor: "moments", "latent" or "indices"."""
        if self.layout.kind == "quantised":
            return "indices"
        return "moments" if self.has_moments else "latent"

    @property
    def output_name(self) -> str:
        """Name of the tensor in items and batches: "latent", or "moments" or "indices" as stored."""
        return self.tensor_name if self.posterior == "moments" or self.layout.kind == "quantised" else "latent"

    def set_epoch(self, epoch: int) -> None:
        """Draws and shuffles from now on are this epoch's."""
        self.epoch = epoch
        self.epochs_set += 1

    # ------------------------------------------------------------ single items

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One row: {"latent": (C, h, w) float32, "key", "view", and the columns asked for}; with posterior="moments", "moments"."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of a latent dataset of {len(self)}")
        item = np.array([index % len(self)])
        batch = self.load(item, self.epoch, ITEM_DRAW + int(item[0]), BufferPool(False))
        return {name: value[0] for name, value in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> LoadedRows:
        """A whole batch at once, which torch's `DataLoader` asks for; in the order of `indices`.

        Raises:
            ValueError: the rows are of several buckets.
        """
        items = np.asarray(indices, np.int64)
        return LoadedRows(self.load(items, self.epoch, ITEM_DRAW + int(items[0]), self._pool))

    def __getstate__(self) -> dict[str, Any]:
        """Without memory maps, which would be pickled as the data they show."""
        return {**self.__dict__, "_units": {}, "_opened_decoder": None}

    def moments(self, index: int) -> dict[str, Tensor]:
        """{"mean", "logvar"}, each (C, h, w), raw and in the stored dtype.

        Raises:
            ValueError: the dataset holds no moments.
        """
        if not self.has_moments:
            raise ValueError(f"{self.folder} stores no moments (kind {self.layout.kind}, store {self._document['store']!r})")
        rows = self._rows(np.array([range(len(self))[index]]), self.epoch)
        mean, logvar = self._gather(rows, BufferPool(False))[0].chunk(2)
        return {"mean": mean, "logvar": logvar}

    # ------------------------------------------------------------ batches

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        tail: Tail = "short",
        rank: int | None = None,
        world_size: int | None = None,
        prefetch: int = 3,
    ) -> Batches:
        """Batches of one bucket each, this rank's share: {"latent": (N, C, h, w) float32, "key": [...], "view": [...], columns: [...]}.

        Every row comes once per epoch over all ranks, in equally many batches on each. Iterating again is the next epoch, unless
        `set_epoch` says another.

        Args:
            batch_size: rows of a batch, at most.
            shuffle: True; False; "units" shuffles units and the rows of each, which reads a dataset larger than memory from front to back.
            tail: "short" splits batches until every rank has equally many; "drop" leaves the rest out.
            rank, world_size: None takes them from torch.distributed, or 0 of 1.
            prefetch: batches loaded ahead by a thread.
        """
        return Batches(self, batch_size, shuffle, tail, rank, world_size, prefetch)

    def groups(self, items: Rows, epoch: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Bucket number and unit number of the row at each position."""
        rows = self._rows(items, epoch)
        return self._bucket_of_row[rows], self._unit_of_row[rows]

    def load(self, items: Rows, epoch: int, number: int, pool: BufferPool) -> dict[str, Any]:
        """The rows at some positions as one batch; (seed, epoch, number) decides the draw.

        Raises:
            ValueError: they are of several buckets.
        """
        rows = self._rows(items, epoch)
        stored = self._gather(rows, pool, means_only=self.has_moments and self.posterior == "mean")
        as_stored = self.output_name != "latent"
        batch: dict[str, Any] = {self.output_name: stored if as_stored else self._latents(stored, epoch, number, pool)}
        labels = self._table.take(pa.array(rows))
        batch |= {name: labels[name].to_pylist() for name in ("key", "view", *self.columns)}
        return batch

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as `data[i]` gives them, (N, C, h, w), to a batch in the encoder's range, (N, 3, H, W) in [-1, 1], with the encoder
        they came from.

        Raises:
            FingerprintError: the encoder's weights are no longer those that made this dataset.
            EncoderError: it can't be loaded, or can't decode.
        """
        return self._decoder().decode(self.normalization.invert(latents, self.layout.axes))

    # ------------------------------------------------------------ inside

    def _rows(self, items: Rows, epoch: int) -> Rows:
        """Row numbers of the index for positions in this dataset: with views="random", the view that is drawn in this epoch."""
        if self._counts is None:
            return self._starts[items]
        if self._drawn is None or self._drawn[0] != epoch:
            draws = np.random.default_rng([self.seed, epoch, 1]).random(len(self._starts))
            self._drawn = epoch, self._starts + (draws * self._counts).astype(np.int64)
        return self._drawn[1][items]

    def _decoder(self) -> Decodes:
        """The encoder of the dataset's recipe.yaml, opened once and compared by its fingerprint."""
        if self._opened_decoder is None:
            from latentkit.build import line_of_dataset

            line = line_of_dataset(self.folder)
            encoder = line.encoder_opener()("cuda" if torch.cuda.is_available() else "cpu")
            if not isinstance(encoder, Decodes):
                raise EncoderError(f"the encoder {line.encoder.provided.spec.name!r} of {self.folder} can't decode")
            made_by, now = counting_parts(self._document["parts"]), counting_parts(line.fingerprint_parts(encoder))
            names = sorted(name for name in {*made_by, *now} if name.startswith("encoder."))
            different = ", ".join(name for name in names if made_by.get(name) != now.get(name))
            if different:
                raise FingerprintError(f"{self.folder} was made by another encoder than its recipe now opens: {different} differ")
            self._opened_decoder = encoder
        return self._opened_decoder

    def _latents(self, stored: Tensor, epoch: int, number: int, pool: BufferPool) -> Tensor:
        if not self.has_moments or self.posterior == "mean":
            return self._normalize(torch.from_numpy(pool.get(stored.shape, np.float32)).copy_(stored))
        shape = (len(stored), stored.shape[1] // 2, *stored.shape[2:])
        out = torch.from_numpy(pool.get(shape, np.float32))
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch, number))
        return self._normalize(draw(stored, generator, out))

    def _gather(self, rows: Rows, pool: BufferPool, means_only: bool = False) -> Tensor:
        """Rows of one bucket as stored: moments (N, 2C, h, w), of which the means alone are (N, C, h, w), or latents (N, C, h, w)."""
        buckets = self._bucket_of_row[rows]
        if (buckets != buckets[0]).any():
            raise ValueError(f"{self.folder} holds several buckets, whose rows can't be stacked; iterate over batches() instead")
        bucket = self._buckets[int(buckets[0])]
        units = self._unit_of_row[rows]
        order = None
        if (np.diff(units) < 0).any():
            order = np.argsort(units, kind="stable")
            rows, units = rows[order], units[order]
        bounds = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(rows)]
        pieces = []
        for start, stop in itertools.pairwise(bounds):
            array, numbers = self._stored(int(units[start]), bucket), self._row_in_unit[rows[start:stop]]
            if means_only:
                # Mean and logvar of a row lie one after the other: as twice as many rows, the means are the even ones.
                array, numbers = array.reshape(len(array) * 2, array.shape[1] // 2, *array.shape[2:]), numbers * 2
            pieces.append((array, numbers))
        out = pool.get((len(rows), *pieces[0][0].shape[1:]), pieces[0][0].dtype)
        take_rows(pieces, out)
        if order is not None:
            unordered, out = out, pool.get(out.shape, out.dtype)
            take_rows([(unordered, np.argsort(order))], out)
        tensor = torch.from_numpy(out)
        if self._document["dtype"] == "bfloat16" and self.layout.kind != "quantised":
            tensor = tensor.view(torch.bfloat16)
        return tensor

    def _stored(self, unit: int, bucket: str) -> Array:
        """A unit's tensor of a bucket, memory-mapped."""
        if unit not in self._units:
            name = self._unit_names[unit]
            self._units[unit] = MappedUnit(self.folder, name, self._document["units"][name])
        return self._units[unit].tensor(f"{bucket}/{self.tensor_name}")

    def _check_posterior(self, posterior: Posterior | None) -> Posterior:
        if posterior not in (None, "sample", "mean", "moments"):
            raise ValueError(f"posterior must be 'sample', 'mean' or 'moments', got {posterior!r}")
        if posterior in ("sample", "moments") and not self.has_moments:
            stored = f"kind {self.layout.kind}, store {self._document['store']!r}"
            raise ValueError(f"posterior={posterior!r} needs stored moments; {self.folder} has {stored}")
        return posterior or ("sample" if self.has_moments else "mean")

    def _load_index(self, views: Views) -> None:
        table = read_index(self.folder, self._document, ["key", "view", "status", "unit", "bucket", "row", "attributes"])
        table = table.filter(pc.equal(table["status"], "ok"))
        if not isinstance(views, str):
            self._check_views(views, table)
            table = table.filter(pc.is_in(table["view"], pa.array(list(views), pa.string())))
        elif views not in ("all", "random"):
            raise ValueError(f"views must be 'all', 'random' or a list of views, got {views!r}")
        if not table.num_rows:
            raise StoreError(f"{self.folder}: no latents; every sample was skipped (`latentkit inspect {self.folder}` says why)")
        units, self._unit_of_row = _coded(table["unit"])
        buckets, self._bucket_of_row = _coded(table["bucket"])
        self._unit_names: list[str] = units
        self._buckets: list[str] = buckets
        self._row_in_unit: Rows = table["row"].to_numpy()
        self._table = self._labels(table)
        self._starts, self._counts = np.arange(table.num_rows), None
        if views == "random":
            self._starts, self._counts = _runs(table["key"])

    def _check_views(self, views: Sequence[str], table: pa.Table) -> None:
        there = set(self._document["views"])
        missing = [view for view in views if view not in there]
        if missing or not views:
            raise ValueError(f"views {missing} are not in {self.folder}; there are {sorted(there)}")

    def _labels(self, table: pa.Table) -> pa.Table:
        """Key, view and the columns asked for, as flat columns."""
        columns = {"key": table["key"], "view": table["view"]}
        attributes = table["attributes"]
        there = [field.name for field in attributes.type] if pa.types.is_struct(attributes.type) else []
        for name in self.columns:
            if name in RESERVED_NAMES:
                raise ValueError(f"column {name!r} would hide what every batch has under that name; rename it in the source")
            if name not in there:
                raise ValueError(f"column {name!r} is not in {self.folder}; there are {there}")
            columns[name] = pc.struct_field(attributes, name)
        return pa.table(columns).combine_chunks()


def _coded(column: pa.ChunkedArray) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Distinct values, sorted, and for each row the number of its value."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    rank = np.argsort(np.argsort(names)).astype(np.int32)
    return sorted(names), rank[encoded.indices.to_numpy()]


def _runs(keys: pa.ChunkedArray) -> tuple[Rows, Rows]:
    """Start and length of each run of equal keys; the views of a sample lie side by side."""
    codes = keys.combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return starts, np.diff(starts, append=len(codes))


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _tupled(layout: Mapping[str, Any]) -> dict[str, Any]:
    downscale = layout["downscale"]
    return {**layout, "downscale": tuple(downscale) if isinstance(downscale, list) else downscale}


class LoadedRows(Sequence[dict[str, Any]]):
    """A loaded batch that also looks like the list of its items, for collate functions that expect one."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["key"])

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return {name: values[index] for name, values in self.batch.items()}


def collate(rows: LoadedRows | Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`collate_fn` for a torch `DataLoader` over a `LatentDataset`: whole batches pass untouched, single items are stacked."""
    if isinstance(rows, LoadedRows):
        return rows.batch
    return {
        name: torch.stack([row[name] for row in rows]) if isinstance(value, Tensor) else [row[name] for row in rows]
        for name, value in rows[0].items()
    }

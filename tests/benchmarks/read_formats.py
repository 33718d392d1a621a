"""Reading the same latents from other formats, beside `batches()` and the raw memory map of
`read.py`.

    python tests/benchmarks/read_formats.py [--rows 20000] [--channels 4] [--side 32] [--rounds 3]

Random batches of 256 rows of float16 moments with captions, warm page cache, one process, no
workers, each format as its documentation reads it. The clock starts when the first batch is there.
MosaicML streaming, litdata and webdataset shuffle within blocks or a buffer; the others give any
permutation. Slow contenders stop after 20 batches. The ratio is to the raw memory map of the same
round; medians over the rounds are printed. What isn't installed is left out and said:

    pip install lmdb mosaicml-streaming litdata webdataset
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from make_dataset import caption, make_dataset
from read import BATCH, RawMemmap, warm, write_raw
from torch.utils.data import DataLoader, Dataset

import latentkit as lk

SLOW_BATCHES = 20
SHARD_BYTES = 64 << 20

Array = npt.NDArray[Any]
Loader = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Rows:
    """What every format holds: the rows of the raw file, with the caption of each."""

    raw: Path
    count: int
    shape: tuple[int, ...]

    def array(self) -> Array:
        """(count, *shape) float16."""
        return np.memmap(self.raw, np.float16, "r", shape=(self.count, *self.shape))

    def samples(self) -> Iterator[dict[str, Any]]:
        """One by one."""
        return (
            {"moments": np.array(row), "text": caption(number)}
            for number, row in enumerate(self.array())
        )


class PerItem(Dataset[dict[str, Any]]):
    """A map-style dataset of `read(number)`, stacked by torch's own collate function."""

    def __init__(self, count: int, read: Callable[[int], dict[str, Any]]) -> None:
        self.count, self.read = count, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.read(number)

    def loader(self) -> Loader:
        """Its batches in random order."""
        return DataLoader(self, BATCH, shuffle=True)


def raw_memmap(folder: Path, rows: Rows) -> Callable[[], Loader]:
    data = RawMemmap(rows.raw, rows.count, rows.shape)
    return lambda: DataLoader(data, BATCH, shuffle=True, collate_fn=lambda batch: batch)


def latentkit_batches(folder: Path, rows: Rows) -> Callable[[], Loader]:
    make_dataset(folder, rows.count, rows.shape[0] // 2, rows.shape[1], 16_384)
    data = lk.open(folder, posterior="moments", columns=["text"])
    return lambda: data.batches(BATCH, shuffle=True)


def latentkit_dataloader(folder: Path, rows: Rows) -> Callable[[], Loader]:
    make_dataset(folder, rows.count, rows.shape[0] // 2, rows.shape[1], 16_384)
    data = lk.open(folder, posterior="moments", columns=["text"])
    return lambda: DataLoader(data, BATCH, shuffle=True, collate_fn=lk.collate)  # type: ignore[arg-type]


def lmdb(folder: Path, rows: Rows) -> Callable[[], Loader]:
    import lmdb

    store = lmdb.open(str(folder), map_size=1 << 38, readahead=False)
    with store.begin(write=True) as transaction:
        for number, sample in enumerate(rows.samples()):
            transaction.put(b"%08d" % number, sample["moments"].tobytes())
            transaction.put(b"t%08d" % number, sample["text"].encode())
    reading = store.begin(buffers=True)

    def read(number: int) -> dict[str, Any]:
        values = np.frombuffer(reading.get(b"%08d" % number), np.float16).reshape(rows.shape)
        return {
            "moments": torch.from_numpy(values.copy()),
            "text": bytes(reading.get(b"t%08d" % number)).decode(),
        }

    return PerItem(rows.count, read).loader


def safetensors_per_sample(folder: Path, rows: Rows) -> Callable[[], Loader]:
    from safetensors.numpy import save_file
    from safetensors.torch import load_file

    for number, sample in enumerate(rows.samples()):
        save_file({"moments": sample["moments"]}, folder / f"{number:08d}.safetensors")
        (folder / f"{number:08d}.txt").write_text(sample["text"])

    def read(number: int) -> dict[str, Any]:
        moments = load_file(folder / f"{number:08d}.safetensors")["moments"]
        return {"moments": moments, "text": (folder / f"{number:08d}.txt").read_text()}

    return PerItem(rows.count, read).loader


def npz_per_sample(folder: Path, rows: Rows) -> Callable[[], Loader]:
    for number, sample in enumerate(rows.samples()):
        np.savez(folder / f"{number:08d}.npz", moments=sample["moments"], text=sample["text"])

    def read(number: int) -> dict[str, Any]:
        with np.load(folder / f"{number:08d}.npz") as file:
            return {"moments": torch.from_numpy(file["moments"]), "text": str(file["text"])}

    return PerItem(rows.count, read).loader


def hf_datasets(folder: Path, rows: Rows) -> Callable[[], Loader]:
    import datasets

    features = datasets.Features(
        {"moments": datasets.Array3D(rows.shape, "float16"), "text": datasets.Value("string")}
    )
    written = datasets.Dataset.from_generator(
        rows.samples, features=features, cache_dir=str(folder / "cache")
    )
    written.save_to_disk(str(folder / "saved"))
    data = datasets.load_from_disk(str(folder / "saved")).with_format("torch")
    return lambda: DataLoader(data, BATCH, shuffle=True)


def streaming(folder: Path, rows: Rows) -> Callable[[], Loader]:
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    columns = {"moments": f"ndarray:float16:{','.join(map(str, rows.shape))}", "text": "str"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SHARD_BYTES) as writer:
        for sample in rows.samples():
            writer.write(sample)
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return lambda: StreamingDataLoader(data, batch_size=BATCH)


def litdata(folder: Path, rows: Rows) -> Callable[[], Loader]:
    import litdata

    litdata.optimize(
        _Numbered(rows),
        list(range(rows.count)),
        str(folder),
        chunk_bytes=SHARD_BYTES,
        num_workers=1,
        verbose=False,
    )
    data = litdata.StreamingDataset(str(folder), shuffle=True)
    return lambda: litdata.StreamingDataLoader(data, batch_size=BATCH)


@dataclass(frozen=True)
class _Numbered:
    """A sample by its number, for a writer that has processes of its own."""

    rows: Rows

    def __call__(self, number: int) -> dict[str, Any]:
        return {
            "moments": torch.from_numpy(np.array(self.rows.array()[number])),
            "text": caption(number),
        }


def webdataset(folder: Path, rows: Rows) -> Callable[[], Loader]:
    import webdataset as wds

    with wds.ShardWriter(str(folder / "%06d.tar"), maxsize=SHARD_BYTES, verbose=0) as writer:
        for number, sample in enumerate(rows.samples()):
            writer.write(
                {"__key__": f"{number:08d}", "npy": sample["moments"], "txt": sample["text"]}
            )
    shards = sorted(map(str, folder.glob("*.tar")))

    def loader() -> Loader:
        data = (
            wds.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(1000)
            .decode()
            .to_tuple("npy", "txt")
            .batched(BATCH)
        )
        return (
            {"moments": torch.as_tensor(moments), "text": text}
            for moments, text in wds.WebLoader(data, batch_size=None)
        )

    return loader


@dataclass(frozen=True)
class Contender:
    """A way to store rows: `make` writes them into an empty folder and gives what begins an epoch.
    """

    name: str
    make: Callable[[Path, Rows], Callable[[], Loader]]
    is_slow: bool = True


CONTENDERS = (
    Contender("raw memmap, DataLoader", raw_memmap, is_slow=False),
    Contender("latentkit batches()", latentkit_batches, is_slow=False),
    Contender("latentkit DataLoader + collate", latentkit_dataloader, is_slow=False),
    Contender("LMDB", lmdb),
    Contender("safetensors per sample", safetensors_per_sample),
    Contender("npz per sample", npz_per_sample),
    Contender("HF datasets", hf_datasets),
    Contender("MosaicML streaming (MDS)", streaming),
    Contender("litdata", litdata),
    Contender("webdataset", webdataset),
)


def rate(loader: Loader, most: int | None) -> float:
    """Rows per second from the second batch on."""
    batches = iter(loader)
    next(batches)
    rows, begun = 0, time.perf_counter()
    for batch in itertools.islice(batches, most):
        rows += len(batch["text"])
    return rows / (time.perf_counter() - begun)


def prepare(scratch: Path, rows: Rows) -> dict[Contender, Callable[[], Loader]]:
    """Every contender that is installed, its files written and in the page cache."""
    loaders = {}
    for contender in CONTENDERS:
        folder = scratch / contender.make.__name__
        folder.mkdir()
        try:
            loaders[contender] = contender.make(folder, rows)
        except ImportError as error:
            print(f"{contender.name}: not installed ({error})")
            continue
        warm([file for file in folder.rglob("*") if file.is_file()])
    warm([rows.raw])
    return loaders


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--channels", type=int, default=4)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    scratch = Path(tempfile.mkdtemp())
    try:
        rows = Rows(scratch / "raw.bin", given.rows, (2 * given.channels, given.side, given.side))
        write_raw(rows.raw, rows.count, rows.shape)
        loaders = prepare(scratch, rows)
        rates: dict[Contender, list[float]] = {contender: [] for contender in loaders}
        for number in range(given.rounds + 1):
            for contender, make in loaders.items():
                speed = rate(make(), SLOW_BATCHES if contender.is_slow else None)
                if number:  # the first round only warms up
                    rates[contender].append(speed)
    finally:
        shutil.rmtree(scratch)
    print(
        f"{rows.count} rows of {np.prod(rows.shape) * 2 // 1024} KiB, batches of {BATCH},"
        f" {given.rounds} rounds"
    )
    base = rates[CONTENDERS[0]]
    for contender, speeds in rates.items():
        ratio = statistics.median(speed / limit for speed, limit in zip(speeds, base, strict=True))
        print(
            f"  {contender.name:32s} {statistics.median(speeds):12,.0f} rows/s   ratio {ratio:7.4f}"
        )


if __name__ == "__main__":
    main()

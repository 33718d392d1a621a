"""Reading latents: `batches()` beside a raw `np.memmap` + `np.take` through a torch DataLoader, the
limit as most would write it.

    python tests/benchmarks/read.py [--rows 20000] [--channels 4] [--side 32] [--rounds 5]
    python tests/benchmarks/read.py --rows 200000 --cold [--sparse 15000]
    python tests/benchmarks/read.py --open PATH

The first reads from a warm page cache, the second few of the rows from a cold one; the third prints
the seconds and the memory of `open`.

Random batches of 256 with captions, one process and no workers. Warm: both files are read from
front to back first. Cold: the page cache lets go of both files before each contender; the raw
memmap is read without a DataLoader. Contenders take turns in every round; a ratio is formed inside
a round, and the medians over the rounds are printed.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_dataset import caption, make_dataset
from torch.utils.data import DataLoader, Dataset

import latentkit as lk

BATCH = 256
FILL_ROWS = 4096

Contender = Callable[[], Iterable[Mapping[str, Any]]]


class RawMemmap(Dataset[dict[str, Any]]):
    """One array, one take per batch."""

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...]) -> None:
        self.array = np.memmap(path, np.float16, "r", shape=(rows, *shape))
        self.captions = [caption(i) for i in range(rows)]

    def __len__(self) -> int:
        return len(self.array)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(indices)
        return {
            "moments": torch.from_numpy(np.take(self.array, rows, axis=0)),
            "text": [self.captions[i] for i in indices],
        }


def write_raw(path: Path, rows: int, shape: tuple[int, ...]) -> None:
    """The raw file: `rows` of float16 noise."""
    noise = (
        np.random.default_rng(0)
        .standard_normal((min(rows, FILL_ROWS), *shape), np.float32)
        .astype(np.float16)
    )
    with open(path, "wb") as file:
        for start in range(0, rows, FILL_ROWS):
            noise[: rows - start].tofile(file)


def warm(files: Iterable[Path]) -> None:
    """The files in the page cache, as reading them from front to back puts them there."""
    drop(files)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def drop(files: Iterable[Path]) -> None:
    """The files out of the page cache."""
    for path in files:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def rate(loader: Iterable[Mapping[str, Any]], most: int | None = None) -> float:
    """Rows per second of one epoch, or of `most` rows; every batch is looked at."""
    rows = 0
    begun = time.perf_counter()
    for batch in loader:
        rows += len(batch["text"])
        if most is not None and rows >= most:
            break
    return rows / (time.perf_counter() - begun)


def report(rates: Mapping[str, Sequence[float]], row_bytes: int) -> None:
    """Medians, and medians of ratios to the first contender of the same round."""
    base = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(value / limit for value, limit in zip(values, base, strict=True))
        speed = statistics.median(values)
        print(
            f"  {name:40s} {speed:12,.0f} rows/s {speed * row_bytes / 1e9:7.2f} GB/s   ratio"
            f" {ratio:6.3f}"
        )


def warm_contenders(
    latents: Path, raw: Path, rows: int, shape: tuple[int, ...]
) -> dict[str, Contender]:
    """What is compared when everything is in memory."""
    limit = RawMemmap(raw, rows, shape)
    contenders: dict[str, Contender] = {
        "raw memmap, DataLoader": lambda: DataLoader(
            limit, BATCH, shuffle=True, collate_fn=lambda batch: batch
        )
    }
    for posterior in ("moments", "mean", "sample"):
        data = lk.open(latents, posterior=posterior, columns=["text"])  # type: ignore[arg-type]
        contenders[f"batches(), {posterior}"] = lambda data=data: data.batches(BATCH, shuffle=True)  # type: ignore[misc]
    plain = lk.open(latents, posterior="moments", columns=["text"])
    contenders["DataLoader + collate, moments"] = lambda: DataLoader(plain, BATCH, shuffle=True, collate_fn=lk.collate)  # type: ignore[arg-type]
    return contenders


def cold_contenders(
    latents: Path, raw: Path, rows: int, shape: tuple[int, ...]
) -> dict[str, Contender]:
    """What is compared when nothing is in memory."""
    order = np.random.default_rng(0)

    def plain() -> Iterable[Mapping[str, Any]]:
        limit = RawMemmap(
            raw, rows, shape
        )  # mapped again: pages of a map that is open stay in memory
        shuffled = order.permutation(rows).tolist()
        return (
            limit.__getitems__(shuffled[start : start + BATCH]) for start in range(0, rows, BATCH)
        )

    seeds = iter(range(1 << 30))

    def batches() -> Iterable[Mapping[str, Any]]:
        return lk.open(latents, posterior="moments", columns=["text"], seed=next(seeds)).batches(
            BATCH, shuffle=True
        )

    return {"raw memmap": plain, "batches(), moments": batches}


def print_open(path: Path) -> None:
    """Seconds that `open` takes in this fresh process, its peak memory, and seconds to the first
    batch.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    import latentkit.reading.dataset  # noqa: F401  # what is imported once isn't what `open` costs

    begun = time.perf_counter()
    data = lk.open(path, columns=["text"])
    opened = time.perf_counter() - begun
    next(iter(data.batches(BATCH, shuffle=True)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(data):,} rows: open {opened:.3f} s, first batch after"
        f" {time.perf_counter() - begun:.3f} s"
    )
    print(f"  peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} GiB before")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--channels", type=int, default=4)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--unit-size", type=int, default=16_384)
    options.add_argument("--cold", action="store_true")
    options.add_argument("--sparse", type=int, default=15_000, help="rows read when cold")
    options.add_argument("--open", type=Path)
    given = options.parse_args()
    if given.open:
        return print_open(given.open)
    with tempfile.TemporaryDirectory() as scratch:
        latents, raw = Path(scratch) / "latents", Path(scratch) / "raw.bin"
        shape = (2 * given.channels, given.side, given.side)
        make_dataset(latents, given.rows, given.channels, given.side, given.unit_size)
        write_raw(raw, given.rows, shape)
        files = [raw, *(latents / "units").iterdir()]
        warm(files)
        contenders = (cold_contenders if given.cold else warm_contenders)(
            latents, raw, given.rows, shape
        )
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(given.rounds + (not given.cold)):
            for name, make in contenders.items():
                loader = make()
                if given.cold:
                    drop(files)
                speed = rate(loader, given.sparse if given.cold else None)
                if number or given.cold:  # the first round only warms up
                    rates[name].append(speed)
    row_bytes = int(np.prod(shape)) * 2
    print(
        f"{given.rows} rows of {row_bytes // 1024} KiB, batches of {BATCH},"
        f" {'cold' if given.cold else 'warm'}, {given.rounds} rounds"
    )
    report(rates, row_bytes)


if __name__ == "__main__":
    main()

"""Reading latents: `batches()` beside a raw `np.memmap` + `np.take` through a torch DataLoader, the limit as most would write it.

    python tests/benchmarks/read.py [--rows 20000] [--rounds 5]

Random batches of 256, 16 KiB a row, captions included, warm page cache, one process and no workers. Contenders take turns in every
round; the ratio is formed inside a round, and the median over rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_dataset import make_dataset
from torch.utils.data import DataLoader, Dataset

import latentkit as lk

BATCH = 256


class RawMemmap(Dataset[dict[str, Any]]):
    """One array, one take per batch."""

    def __init__(self, path: Path, rows: int, shape: tuple[int, ...]) -> None:
        self.array = np.memmap(path, np.float16, "r", shape=(rows, *shape))
        self.captions = [f"a caption of exactly sixty characters, number {i:>8d} it is"[:60] for i in range(rows)]

    def __len__(self) -> int:
        return len(self.array)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(indices)
        return {"moments": torch.from_numpy(np.take(self.array, rows, axis=0)), "text": [self.captions[i] for i in indices]}


def rate(loader: Iterable[dict[str, Any]], name: str) -> float:
    """Rows per second of one epoch; every batch is looked at."""
    rows = 0
    begun = time.perf_counter()
    for batch in loader:
        rows += len(batch[name])
    return rows / (time.perf_counter() - begun)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--channels", type=int, default=4)
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--unit-size", type=int, default=16_384)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        path = make_dataset(Path(scratch) / "latents", given.rows, given.channels, given.side, given.unit_size)
        shape = (2 * given.channels, given.side, given.side)
        raw = Path(scratch) / "raw.bin"
        np.memmap(raw, np.float16, "w+", shape=(given.rows, *shape))[:] = 1
        contenders: dict[str, Callable[[], tuple[Iterable[dict[str, Any]], str]]] = {
            "raw memmap, DataLoader": lambda: (
                DataLoader(RawMemmap(raw, given.rows, shape), BATCH, shuffle=True, collate_fn=lambda batch: batch),
                "moments",
            ),
        }
        for posterior, name in (("moments", "moments"), ("mean", "latent"), ("sample", "latent")):
            data = lk.open(path, posterior=posterior, columns=["text"])  # type: ignore[arg-type]
            contenders[f"batches(), {posterior}"] = lambda data=data, name=name: (data.batches(BATCH, shuffle=True), name)  # type: ignore[misc]
        data = lk.open(path, posterior="moments", columns=["text"])
        contenders["DataLoader + collate, moments"] = lambda: (DataLoader(data, BATCH, shuffle=True, collate_fn=lk.collate), "moments")  # type: ignore[arg-type]
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(given.rounds + 1):
            for name, make in contenders.items():
                rates[name].append(rate(*make()))
    row_bytes = int(np.prod(shape)) * 2
    print(f"{given.rows} rows of {row_bytes // 1024} KiB, batches of {BATCH}, median of {given.rounds} rounds")
    base = rates["raw memmap, DataLoader"][1:]
    for name, values in rates.items():
        ratio = statistics.median(value / limit for value, limit in zip(values[1:], base, strict=True))
        speed = statistics.median(values[1:])
        print(f"  {name:32s} {speed:12,.0f} rows/s {speed * row_bytes / 1e9:7.2f} GB/s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()

"""How long an export takes beside writing the same bytes with the format's own writer alone, from
rows in memory; both in one run.

python tests/benchmarks/export.py FOLDER [--rows 100000] [--side 32]
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from make_dataset import make_dataset
from safetensors.torch import save_file

from latentkit.reading.dataset import open_dataset
from latentkit.tasks.export import export_dataset

Row = tuple[torch.Tensor, dict[str, Any]]

ROWS_KEPT = 1024
"""Rows that the own writer is given again and again, so that it never waits for them."""


def write_tars(rows: Iterable[Row], folder: Path) -> None:
    """As the library webdataset takes it, 10,000 rows in a file."""
    tar: Any = None
    for number, (latent, labels) in enumerate(rows):
        if number % 10_000 == 0:
            tar = tarfile.open(folder / f"{number // 10_000:06d}.tar", "w")  # noqa: SIM115
        file = io.BytesIO()
        np.save(file, latent.numpy(), allow_pickle=False)
        parts = {"latent.npy": file.getvalue(), "json": json.dumps(labels).encode()}
        for name, content in parts.items():
            entry = tarfile.TarInfo(f"{number:08d}.{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        if number % 10_000 == 9_999:
            tar.close()
    tar.close()


def write_files(rows: Iterable[Row], folder: Path) -> None:
    """A .safetensors per row."""
    for number, (latent, labels) in enumerate(rows):
        name = folder / f"{number // 10_000:04d}" / f"{number:08d}.safetensors"
        name.parent.mkdir(exist_ok=True)
        save_file({"latent": latent}, name, {"row": json.dumps(labels)})


WRITERS: dict[str, Callable[[Iterable[Row], Path], None]] = {
    "webdataset": write_tars,
    "safetensors": write_files,
}


def measure(do: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("folder", type=Path)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--side", type=int, default=32)
    given = options.parse_args()
    latents = given.folder / "latents"
    make_dataset(latents, given.rows, 4, given.side, 16_384)
    data = open_dataset(str(latents), "mean", columns=["text", "label"])
    kept = [data[number] for number in range(min(ROWS_KEPT, given.rows))]
    rows = [(row.pop("latent"), row) for row in kept]
    for name, writer in WRITERS.items():
        own, out = given.folder / f"own-{name}", given.folder / f"out-{name}"
        own.mkdir()
        repeated = (rows[number % len(rows)] for number in range(given.rows))
        alone = measure(lambda: writer(repeated, own))  # noqa: B023 (called at once)
        shutil.rmtree(own)
        exported = measure(lambda: export_dataset(str(latents), str(out), name, {}))  # noqa: B023
        shutil.rmtree(out)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(
            f"{name}: {given.rows} rows exported in {exported:.1f} s, own writer {alone:.1f} s,"
            f" ratio {alone / exported:.2f}, peak memory {peak:.2f} GB"
        )


if __name__ == "__main__":
    main()

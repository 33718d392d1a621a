"""How many rows a second the writing thread takes, and how many are committed; the encoder is free.

    python tests/benchmarks/write.py [--rows 1024] [--shape 16,64,64] [--rounds 5]

Rows are moments of the shape (2C, h, w) in float16, in batches of 64, as a GPU's copies leave them.
"on the CPU": the writing thread looks for values that are not finite and takes statistics; "on the
device": both came along with the batch. Each round runs both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from latentkit.contracts import Unit
from latentkit.store.local_folder import LocalFolder
from latentkit.store.statistics import measure_on_device
from latentkit.store.writer import RowLabel, UnitWriter

BATCH_SIZE = 64


def main() -> None:
    """Print the median of each figure over the rounds, and its range."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--shape", default="16,64,64", help="of a latent: channels, height, width")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    channels, *sizes = map(int, options.shape.split(","))
    batch = torch.randn(BATCH_SIZE, 2 * channels, *sizes).half()
    torch.set_num_threads(1)  # as in a run on a GPU: the writing thread is one
    measured = measure_on_device({"moments": batch}, "moments")
    figures: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for where, given in (("on the CPU", None), ("on the device", measured)):
            for step, seconds in write_unit(batch, options.rows // BATCH_SIZE, given).items():
                figures.setdefault(f"statistics {where}: {step}", []).append(
                    options.rows // BATCH_SIZE * BATCH_SIZE / seconds
                )
    for name, rates in figures.items():
        print(
            f"{name:<45} {statistics.median(rates):8.0f} rows/s ({min(rates):.0f} to"
            f" {max(rates):.0f})"
        )


def write_unit(
    batch: torch.Tensor, num_batches: int, measured: dict[str, torch.Tensor] | None
) -> dict[str, float]:
    """Return the seconds of adding the batches to a unit, and of committing it."""
    batches = [batch.clone() for _ in range(num_batches)]
    with tempfile.TemporaryDirectory() as scratch:
        writer = UnitWriter(Unit(0, 0, 0, num_batches * BATCH_SIZE))
        begun = time.perf_counter()
        for number, each in enumerate(batches):
            labels = [RowLabel(number * BATCH_SIZE + row, "plain") for row in range(BATCH_SIZE)]
            writer.add("512x512", labels, {"moments": each}, None, measured)
        added = time.perf_counter()
        writer.commit(LocalFolder(Path(scratch)), {}, "0" * 64)
        return {
            "writing thread": added - begun,
            "one committing thread": time.perf_counter() - added,
        }


if __name__ == "__main__":
    main()

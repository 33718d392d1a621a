"""A latent dataset of any size, written through the store as an encoder would, but from random
numbers.

python tests/benchmarks/make_dataset.py PATH [--rows 1000000] [--channels 4] [--side 16]
[--unit-size 65536]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from latentkit.contracts import Entry, LatentLayout, Normalization
from latentkit.store.dataset_json import Description, finalize
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import PlanSettings, list_entries, plan_of, write_plan
from latentkit.store.writer import RowLabel, UnitWriter

BATCH = 256


def caption(number: int) -> str:
    """60 characters."""
    return f"a caption of exactly sixty characters, number {number:>8d} it is...."[:60]


def make_dataset(
    path: Path,
    num_samples: int,
    channels: int,
    side: int,
    unit_size: int,
    views: Sequence[str] = ("plain",),
) -> Path:
    """Gaussian moments (2 * channels, side, side) in float16 of each view, with a caption of 60
    characters per sample; rows are drawn from one pool of noise.
    """
    folder = LocalFolder(path)
    settings = PlanSettings(
        {"encoder.name": "random", "store": "moments", "dtype": "float16"},
        BATCH,
        unit_size,
        1,
        False,
        {},
    )
    entries = (
        Entry(f"{i:08d}", "", {"text": caption(i), "label": i % 1000}) for i in range(num_samples)
    )
    plan = plan_of(0, list_entries(entries), settings)
    write_plan(folder, plan)
    noise = torch.randn(BATCH, 2 * channels, side, side).half()
    for unit in plan.units():
        writer = UnitWriter(unit)
        for start in range(unit.start, unit.stop, BATCH):
            positions = range(start, min(start + BATCH, unit.stop))
            rows = noise.roll(start, 0)[: len(positions)].repeat_interleave(len(views), 0)
            writer.add(
                f"{side * 8}x{side * 8}",
                [RowLabel(position, view) for position in positions for view in views],
                {"moments": rows},
            )
        writer.commit(folder, {}, settings.fingerprint)
    layout = LatentLayout("latent", "gaussian", "CHW", channels, 8)
    finalize(
        folder,
        [plan],
        Description(layout, Normalization(0.1, 0.5), "moments", "float16", {}, [*views]),
        lambda index: None,
    )
    return path


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("path", type=Path)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--channels", type=int, default=4)
    options.add_argument("--side", type=int, default=16)
    options.add_argument("--unit-size", type=int, default=65_536)
    given = options.parse_args()
    make_dataset(given.path, given.rows, given.channels, given.side, given.unit_size)


if __name__ == "__main__":
    main()

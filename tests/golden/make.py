"""Writes the golden latent datasets of the present format version, which every later program has to
read.

python tests/golden/make.py        into tests/golden/v<version>*; never run again for a version that
was released
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from latentkit.contracts import Entry, LatentLayout, Normalization
from latentkit.store.dataset_json import VERSION, Description, finalize
from latentkit.store.local_folder import LocalFolder
from latentkit.store.plan import PlanSettings, list_entries, plan_of, write_plan
from latentkit.store.writer import RowLabel, UnitWriter

CAPTIONS = ("a cat", "два кота", None, "../../etc/passwd", "")
SKIPPED = 2


def golden_moments(row: int, view: int) -> torch.Tensor:
    """(4, 2, 3) float16: mean of 2 channels, then logvar; made of eighths, which float16 holds
    exactly.
    """
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3) / 8 + row + 10 * view
    values[2:] = -values[2:] / 4
    return torch.from_numpy(values).half()


LENGTHS = (3, 1, 5, 2, 4)
LONGEST = 5


def golden_row(row: int) -> torch.Tensor:
    """(4, 5) float16, for a row of which the first `LENGTHS[row]` positions count."""
    return (torch.arange(20.0).reshape(4, LONGEST) / 4 - row).half()


def golden_mask(rows: range) -> torch.Tensor:
    """(rows, 5) uint8."""
    return (torch.arange(LONGEST) < torch.tensor([LENGTHS[row] for row in rows])[:, None]).to(
        torch.uint8
    )


def main() -> None:
    make_pictures()
    make_sounds("ragged", LatentLayout("text-embedding", "gaussian", "CL", 2, 1, "L"))
    make_sounds("masked", LatentLayout("latent", "deterministic", "CL", 4, 1))


def make_sounds(name: str, layout: LatentLayout) -> None:
    """Rows of `golden_row`: ragged ones as int8 moments, others as latents with a mask beside them.
    """
    folder = LocalFolder(Path(__file__).with_name(f"v{VERSION}-{name}"))
    dtype, store = ("int8", "moments") if layout.ragged_axis else ("float16", "mean")
    settings = PlanSettings(
        {"encoder.name": f"golden-{name}"}, 2, 3, 1, False, {"latentkit": "0.1.0"}
    )
    entries = [Entry(f"{row}.wav", f"stamp-{row}", {"row": row}) for row in range(len(LENGTHS))]
    plan = plan_of(
        0,
        list_entries(entries),
        settings,
    )
    write_plan(folder, plan)
    for unit in plan.units():
        writer, rows = UnitWriter(unit, quantize=dtype == "int8"), range(unit.start, unit.stop)
        values = torch.stack([golden_row(row) for row in rows])
        tensors = {"moments": values.float()} if layout.ragged_axis else {"latent": values}
        labels = [
            RowLabel(row, "plain", 0, f"{row:064x}", {"length": LENGTHS[row]}) for row in rows
        ]
        writer.add(
            "1xL", labels, {**tensors, "mask": golden_mask(rows)}, 2 if layout.ragged_axis else None
        )
        writer.commit(folder, {"batch_size": 3}, settings.fingerprint)
    normalization = Normalization([0.5] * layout.channels, [2.0] * layout.channels)
    finalize(
        folder,
        [plan],
        Description(layout, normalization, store, dtype, {"use": "golden"}, ["plain"]),
        lambda reasons: None,
    )


def make_pictures() -> None:
    """Two views of five pictures, one of which can't be used."""
    folder = LocalFolder(Path(__file__).with_name(f"v{VERSION}"))
    settings = PlanSettings(
        {"encoder.name": "golden", "modality.with.size": "16"},
        2,
        3,
        1,
        False,
        {"latentkit": "0.1.0"},
    )
    entries = [
        Entry(f"folder/{row}.png", f"stamp-{row}", {"text": text, "row": row})
        for row, text in enumerate(CAPTIONS)
    ]
    plan = plan_of(0, list_entries(entries), settings)
    write_plan(folder, plan)
    for unit in plan.units():
        writer = UnitWriter(unit)
        for row in range(unit.start, unit.stop):
            labels = [
                RowLabel(row, view, number, f"{row:064x}", {"flip": view == "hflip"})
                for number, view in enumerate(["plain", "hflip"])
            ]
            if row == SKIPPED:
                for label in labels:
                    writer.skip(label, "not a picture")
                continue
            bucket = "16x24" if row % 2 == 0 else "16x24-other"
            writer.add(
                bucket,
                labels,
                {"moments": torch.stack([golden_moments(row, view) for view in range(2)])},
            )
        writer.commit(folder, {"batch_size": 2}, settings.fingerprint)
    layout = LatentLayout("latent", "gaussian", "CHW", 2, 8)
    normalization = Normalization([0.5, -0.5], [2.0, 0.25])
    description = Description(
        layout,
        normalization,
        "moments",
        "float16",
        {"use": "golden", "with": {}},
        ["plain", "hflip"],
    )
    finalize(folder, [plan], description, lambda reasons: None)


if __name__ == "__main__":
    main()

"""Writes the golden latent dataset of the present format version, which every later program has to read.

    python tests/golden/make.py        into tests/golden/v<version>; never run again for a version that was released
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from latentkit.contracts import Entry, LatentLayout, Normalization
from latentkit.store.dataset import VERSION, Description, finalize
from latentkit.store.folder import LocalFolder
from latentkit.store.plan import PlanSettings, build_plan, write_plan
from latentkit.store.writer import RowLabel, UnitWriter

CAPTIONS = ("a cat", "два кота", None, "../../etc/passwd", "")
SKIPPED = 2


def golden_moments(row: int, view: int) -> torch.Tensor:
    """(4, 2, 3) float16: mean of 2 channels, then logvar; made of eighths, which float16 holds exactly."""
    values = np.arange(24, dtype=np.float32).reshape(4, 2, 3) / 8 + row + 10 * view
    values[2:] = -values[2:] / 4
    return torch.from_numpy(values).half()


def main() -> None:
    folder = LocalFolder(Path(__file__).with_name(f"v{VERSION}"))
    settings = PlanSettings({"encoder.name": "golden", "modality.with.size": "16"}, 2, 3, 1, False, {"latentkit": "0.1.0"})
    entries = [Entry(f"folder/{row}.png", f"stamp-{row}", {"text": text, "row": row}) for row, text in enumerate(CAPTIONS)]
    plan = build_plan(0, entries, settings)
    write_plan(folder, plan)
    for unit in plan.units():
        writer = UnitWriter(unit)
        for row in range(unit.start, unit.stop):
            labels = [
                RowLabel(row, view, number, f"{row:064x}", {"flip": view == "hflip"}) for number, view in enumerate(["plain", "hflip"])
            ]
            if row == SKIPPED:
                for label in labels:
                    writer.skip(label, "not a picture")
                continue
            bucket = "16x24" if row % 2 == 0 else "16x24-other"
            writer.add(bucket, labels, {"moments": torch.stack([golden_moments(row, view) for view in range(2)])})
        writer.commit(folder, {"batch_size": 2}, settings.fingerprint)
    layout = LatentLayout("latent", "gaussian", "CHW", 2, 8)
    normalization = Normalization([0.5, -0.5], [2.0, 0.25])
    description = Description(layout, normalization, "moments", "float16", {"use": "golden", "with": {}}, ["plain", "hflip"])
    finalize(folder, [plan], description, lambda reasons: None)


if __name__ == "__main__":
    main()

"""A latent dataset of any size, written through the store as an encoder would, but from random numbers."""

from __future__ import annotations

from pathlib import Path

import torch

from latentkit.contracts import Entry, LatentLayout, Normalization
from latentkit.store.folder import LocalFolder
from latentkit.store.index import Description, finalize
from latentkit.store.plan import PlanSettings, build_plan, write_plan
from latentkit.store.writer import RowLabel, UnitWriter

BATCH = 256


def make_dataset(path: Path, num_rows: int, channels: int, side: int, unit_size: int) -> Path:
    """Gaussian moments (2 * channels, side, side) in float16 with a 60-character caption each; rows are drawn from one pool of noise."""
    folder = LocalFolder(path)
    settings = PlanSettings({"encoder.name": "random"}, BATCH, unit_size, 1, False, {})
    caption = "a caption of exactly sixty characters, number {:>8d} it is...."
    plan = build_plan(0, (Entry(f"{i:08d}", "", {"text": caption.format(i)[:60], "label": i}) for i in range(num_rows)), settings)
    write_plan(folder, plan)
    noise = torch.randn(BATCH, 2 * channels, side, side).half()
    for unit in plan.units():
        writer = UnitWriter(unit)
        for start in range(unit.start, unit.stop, BATCH):
            positions = range(start, min(start + BATCH, unit.stop))
            rows = noise[: len(positions)].roll(start, 0)
            writer.add(f"{side * 8}x{side * 8}", [RowLabel(position, "plain") for position in positions], {"moments": rows})
        writer.commit(folder, {}, settings.fingerprint)
    layout = LatentLayout("latent", "gaussian", "CHW", channels, 8)
    finalize(folder, plan, Description(layout, Normalization(0.1, 0.5), "moments", "float16", {}, ["plain"]), lambda reasons: None)
    return path

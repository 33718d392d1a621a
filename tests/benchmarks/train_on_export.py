"""Trains on an export of photographs with what a trainer has itself: fast-DiT's own loader, network
and diffusion, from a checkout of its repository. Its train.py is these in a loop for GPUs, and here
the loop is a short one for any device.

python tests/benchmarks/train_on_export.py CHECKOUT PHOTOS FOLDER [--steps 300]

CHECKOUT is a clone of https://github.com/chuanyangjin/fast-DiT, PHOTOS has a folder of pictures for
each class, FOLDER takes latents and export. Needs plugins/latentkit-trainers, timm and torchvision.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import latentkit as lk
from latentkit.tasks.export import export_dataset

SIZE, DOWNSCALE = 128, 8
"""Pixels on a side, and per position of a latent."""

NETWORK = {"depth": 6, "hidden_size": 256, "num_heads": 4, "patch_size": 2}
BATCH = 16
NUM_TRIED = 4
"""Batches of a loss that is comparable: the same rows, noise and time steps each time."""


def make_export(photos: Path, folder: Path) -> Path:
    """Encode photographs and their mirror images, and export them."""
    latents, out = folder / "latents", folder / "fast-dit"
    lk.run(
        {
            "task": "encode",
            "source": {"use": "folder", "with": {"path": str(photos)}},
            "modality": {"use": "image", "with": {"size": SIZE, "views": ["plain", "hflip"]}},
            "encoder": {"use": "tiny-kl"},
            "output": {"path": str(latents)},
            "preview": 0,
        }
    )
    if not out.exists():
        # the files hold normalized latents, which this trainer takes as they are
        exported = export_dataset(str(latents), str(out), "fast-dit", {"allow_other_scale": True})
        print(exported.what, exported.closing, sep="\n")
    return out


class Trainer:
    """fast-DiT's parts, from its checkout."""

    def __init__(self, checkout: Path, export: Path, rate: float) -> None:
        sys.path.insert(0, str(checkout))
        train, models, diffusion = map(importlib.import_module, ("train", "models", "diffusion"))
        folders = (export / f"imagenet256_{name}" for name in ("features", "labels"))
        self.rows = train.CustomDataset(*map(str, folders))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        num_classes = 1 + max(int(label) for _, label in self.rows)
        network = models.DiT(input_size=SIZE // DOWNSCALE, num_classes=num_classes, **NETWORK)
        self.network = network.to(self.device)
        self.diffusion = diffusion.create_diffusion(timestep_respacing="")
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=rate, weight_decay=0)

    def batches(self) -> Iterator[Any]:
        """Shuffled batches without end."""
        loader = DataLoader(self.rows, BATCH, shuffle=True, drop_last=True)
        return itertools.chain.from_iterable(itertools.repeat(loader))

    def loss(self, batch: Any) -> Tensor:
        """As its train.py computes it."""
        x, y = (part.to(self.device).squeeze(dim=1) for part in batch)
        t = torch.randint(0, self.diffusion.num_timesteps, (x.shape[0],), device=self.device)
        found = self.diffusion.training_losses(self.network, x, t, {"y": y})
        loss: Tensor = found["loss"].mean()
        return loss

    def step(self, batch: Any) -> None:
        """Train on one batch."""
        self.network.train()
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def try_out(self) -> float:
        """Mean loss of the same rows, noise and time steps as ever."""
        self.network.eval()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            batches = itertools.islice(self.batches(), NUM_TRIED)
            return sum(float(self.loss(batch)) for batch in batches) / NUM_TRIED


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("checkout", "photos", "folder"):
        options.add_argument(name, type=Path)
    options.add_argument("--steps", type=int, default=300)
    options.add_argument("--rate", type=float, default=3e-4)
    given = options.parse_args()
    export = make_export(given.photos, given.folder)
    torch.manual_seed(0)
    trainer = Trainer(given.checkout, export, given.rate)
    first, start = trainer.try_out(), time.perf_counter()
    for number, batch in enumerate(itertools.islice(trainer.batches(), given.steps), 1):
        trainer.step(batch)
        if number % 50 == 0 or number == given.steps:
            print(f"step {number}: loss {trainer.try_out():.4f}", flush=True)
    last, seconds = trainer.try_out(), time.perf_counter() - start
    print(
        f"{len(trainer.rows)} rows, {given.steps} steps of {BATCH} in {seconds:.0f} s on"
        f" {trainer.device}: loss {first:.4f} before, {last:.4f} after"
    )
    if last >= first:
        raise SystemExit("the loss did not fall")


if __name__ == "__main__":
    main()

"""An encode, reading it, and a resumed training, in one process, of the folder `photos`.

Run by lacking.py.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

import latentkit as lk
from latentkit.store.compact import compact
from latentkit.store.open_folder import open_folder
from latentkit.tasks.export import export_dataset
from latentkit.training.checkpoint import list_checkpoints

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 2}

TRAIN = """
task: train
source: {use: folder, with: {path: photos}}
modality: {use: image, with: {size: 32}}
model: {use: tiny-kl, with: {init: random}}
losses: [{use: mse}, {use: kl, weight: 1e-6}]
optimizer: {lr: 1e-3}
ema: {decay: 0.9}
steps: 3
batch_size: 2
output: {path: run, checkpoint_every: 1}
"""


def encode_and_read(output: str) -> list[float]:
    """Encode, add to it, compact, export and read all of it; the sum of each row's moments."""
    lk.encode("photos", output, encoder="tiny-kl", size=32, overrides=FIXED)
    Path("photos/new.png").write_bytes(Path("photos/001.png").read_bytes())
    lk.encode("photos", output, encoder="tiny-kl", size=32, overrides=FIXED)
    Path("photos/new.png").unlink()
    assert compact(open_folder(output)).units_after < 4
    Path("exported").mkdir()
    assert export_dataset(output, "exported", "safetensors", {}).what == "7 rows"
    shutil.rmtree("exported")
    data = lk.open(output, posterior="moments", cache=("cache", 1))
    assert sum(len(batch["key"]) for batch in data.batches(2, shuffle=True)) == len(data) == 7
    return [data.moments(number)["mean"].double().sum().item() for number in range(len(data))]


def train() -> dict[str, str]:
    """Three steps, then two more from the last checkpoint; the hash of each file of weights."""
    Path("train.yaml").write_text(TRAIN, encoding="utf-8")
    lk.run("train.yaml")
    lk.run("train.yaml", overrides={"steps": 5})
    assert len(list_checkpoints(Path("run/checkpoints"))) == 2
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in Path("run/model").glob("*.safetensors")
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    local, remote = encode_and_read("latents"), encode_and_read("memory://latents")
    assert local == remote
    print(json.dumps({"latents": local, "weights": train()}))

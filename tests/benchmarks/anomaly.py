"""Anomaly detection on MNIST: each digit in turn is the unusual one. A variational autoencoder is
trained on the other digits, and the scores of `latentkit score` stand beside pyod's detectors on
the same split.

    python tests/benchmarks/anomaly.py TRAIN.parquet TEST.parquet WORK [--digits 0 1 …]
        [--steps 600] [--items 6000 3000] [--pyod no]

TRAIN and TEST have the columns image and label, as `ylecun/mnist` on the hub. pyod is not a
requirement: install it by hand (`pip install pyod`), or pass --pyod no. Prints the area under the
ROC curve by digit and score, and the means.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

import latentkit as lk
from latentkit.uses.calibration import roc_auc

CONFIG = {
    "_class_name": "AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 2,
    "block_out_channels": [16, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 1.0,
    "mid_block_add_attention": False,
}
"""32 x 32 gray pixels to 2 x 4 x 4 latents."""


def write(table: pa.Table, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / "data.parquet")
    return folder


def pixels(table: pa.Table) -> npt.NDArray[np.float32]:
    """(N, 784) in [0, 1]."""
    images = [Image.open(io.BytesIO(one["bytes"])) for one in table["image"].to_pylist()]
    return np.stack([np.asarray(image, np.float32).ravel() / 255 for image in images])


def train(source: Path, output: Path, steps: int, kl_weight: float, seed: int = 0) -> Path:
    """Train a small variational autoencoder by latentkit's own task; return the model's folder."""
    config = output.with_suffix(".json")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(CONFIG))
    lk.run(
        {
            "task": "train",
            "source": {"use": "datasets", "with": {"path": str(source)}},
            "modality": {"use": "image", "with": {"size": 32}},
            "model": {"use": "diffusers", "with": {"config": str(config)}},
            "losses": [
                {"use": "gaussian-nll"},
                {"use": "kl", "weight": kl_weight},
            ],
            "optimizer": {"lr": 2e-3, "schedule": "cosine", "warmup": 100},
            "steps": steps,
            "batch_size": 64,
            "output": {"path": str(output)},
            "seed": seed,
        }
    )
    return output / "model"


def encode(source: Path, model: Path, output: Path) -> Path:
    """Encode a folder of parquet files."""
    lk.run(
        {
            "task": "encode",
            "source": {"use": "datasets", "with": {"path": str(source)}},
            "modality": {"use": "image", "with": {"size": 32}},
            "encoder": {"use": "diffusers", "with": {"model": str(model)}},
            "output": {"path": str(output), "dtype": "float32"},
            "batch_size": 64,
            "preview": 0,
        }
    )
    return output


def measure_latentkit(work: Path, digit: int, steps: int) -> Mapping[str, float]:
    """Areas of latentkit's scores for one unusual digit."""
    folder = work / f"digit-{digit}"
    model = train(folder / "clean", folder / "vae", steps, kl_weight=1.0)
    clean, test = (
        encode(place, model, folder / f"latents-{name}")
        for name, place in (("clean", folder / "clean"), ("test", work / "test"))
    )
    overrides = {"batch_size": 64, "draws": 2}
    result = lk.score(
        test,
        folder / "scores",
        clean=clean,
        label="label",
        unusual=[digit],
        overrides=overrides,
    )
    assert result is not None
    return result.roc_auc


def measure_pyod(
    train_pixels: Any, test_pixels: Any, is_unusual: npt.NDArray[np.bool_]
) -> Mapping[str, float]:
    """Areas of pyod's detectors, with their own settings."""
    from pyod.models.ecod import ECOD
    from pyod.models.knn import KNN
    from pyod.models.pca import PCA
    from pyod.models.vae import VAE

    found = {}
    detectors = {"pyod VAE": VAE(verbose=0), "pyod PCA": PCA(), "pyod ECOD": ECOD(), "pyod kNN": KNN()}
    for name, detector in detectors.items():
        detector.fit(train_pixels)
        scores = np.asarray(detector.decision_function(test_pixels), np.float64)
        found[name] = roc_auc(scores, is_unusual)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--digits", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--items", type=int, nargs=2, default=[6000, 3000])
    parser.add_argument("--pyod", choices=["yes", "no"], default="yes")
    options = parser.parse_args()
    tables = [pq.read_table(file) for file in (options.train, options.test)]
    train_table, test_table = (
        table.slice(0, count) for table, count in zip(tables, options.items, strict=True)
    )
    write(test_table, options.work / "test")
    areas: dict[str, list[float]] = {}
    for digit in options.digits:
        clean = train_table.filter(pc.not_equal(train_table["label"], digit))
        write(clean, options.work / f"digit-{digit}" / "clean")
        found = dict(measure_latentkit(options.work, digit, options.steps))
        if options.pyod == "yes":
            is_unusual = np.asarray(test_table["label"]) == digit
            found |= measure_pyod(pixels(clean), pixels(test_table), is_unusual)
        for name, area in found.items():
            areas.setdefault(name, []).append(area)
        print(digit, {name: round(area, 4) for name, area in found.items()}, flush=True)
    for name, values in sorted(areas.items(), key=lambda item: -statistics.mean(item[1])):
        print(f"{name:16} {statistics.mean(values):.4f}")


if __name__ == "__main__":
    main()

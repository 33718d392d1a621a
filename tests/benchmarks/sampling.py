"""Samplers on MNIST: the Fréchet distance of decoded samples to test digits, in the features of one
fixed classifier, for each sampler of `latentkit sample`.

    python tests/benchmarks/sampling.py TRAIN.parquet TEST.parquet WORK
        [--items 6000 3000] [--steps 1500] [--kl-weight 1] [--samples 3000]

TRAIN and TEST have the columns image and label, as `ylecun/mnist` on the hub. A variational
autoencoder is trained on the digits of TRAIN, samplers are fitted to their posteriors, and the
classifier is trained on the same digits, with a fixed seed. Published orders: P. Ghosh et al.,
"From Variational to Deterministic Autoencoders" (2020), table 1: a mixture of Gaussians 17.66,
N(0, I) 19.21 (Inception features, MNIST); C. Chadebec et al., "Pythae" (2022): 13.13 and 40.70.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from anomaly import encode, pixels, train, write
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

import latentkit as lk
from latentkit.metrics.frechet import frechet_distance
from latentkit.store.dataset_json import read_dataset
from latentkit.uses.classifier import Classifier, LabeledImages, accuracy, train_classifier
from latentkit.uses.decoded_media import open_media_decoder
from latentkit.uses.mixture import GaussianMixture
from latentkit.uses.raw_rows import open_rows
from latentkit.uses.samplers import (
    ChannelGaussian,
    LowRankGaussian,
    SpatialGaussian,
    StandardNormal,
)


def read_images(file: Path, count: int) -> LabeledImages:
    """Digits as the autoencoder has them: (N, 1, 32, 32) in [-1, 1]."""
    table = pq.read_table(file).slice(0, count)
    images = torch.from_numpy(pixels(table)).reshape(-1, 1, 28, 28) * 2 - 1
    resized = interpolate(images, (32, 32), mode="bicubic", antialias=True).clamp(-1, 1)
    return LabeledImages(resized, torch.from_numpy(np.asarray(table["label"]).copy()))


def features(network: Classifier, images: Tensor) -> Tensor:
    """Pooled features (N, 512) of images, float64."""
    with torch.no_grad():
        found = [
            adaptive_avg_pool2d(network.features(part), 4).flatten(1) for part in images.split(256)
        ]
    return torch.cat(found).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--items", type=int, nargs=2, default=[6000, 3000])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--kl-weight", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=3000)
    options = parser.parse_args()
    table = pq.read_table(options.train).slice(0, options.items[0])
    source = write(table, options.work / "digits")
    model = train(source, options.work / "vae", options.steps, options.kl_weight)
    dataset = lk.open(encode(source, model, options.work / "latents"))
    media = open_media_decoder(dataset, read_dataset(dataset.folder)["parts"], "cpu")
    rows = open_rows(dataset, "auto", 0)
    known = read_images(options.train, options.items[0])
    test = read_images(options.test, options.items[1])
    network = train_classifier(known, 10, 1000, 0, augments=False, flips=False)
    print(f"classifier: accuracy {accuracy(network, test):.4f} on test digits")
    reference = features(network, test.images)

    def distance(images: Tensor) -> float:
        found = features(network, images)
        moments = [(one.mean(0), torch.cov(one.T)) for one in (found, reference)]
        return float(frechet_distance(*moments[0], *moments[1]))

    samplers = {
        "normal": StandardNormal(rows.shape),
        "channel-gaussian": ChannelGaussian.fit(rows),
        "spatial-gaussian": SpatialGaussian.fit(rows),
        "low-rank": LowRankGaussian.fit(rows, 64),
        "mixture": GaussianMixture.fit(rows, 10, 0),
    }
    print(f"training digits themselves {distance(known.images[: options.samples]):.2f}")
    means = rows.moments(rows.items[: options.samples])[0]
    print(f"their reconstructions      {distance(torch.stack(list(media.decode(means, 64)))):.2f}")
    for name, sampler in samplers.items():
        latents = sampler.draw(options.samples, torch.Generator().manual_seed(0))
        print(f"{name:26} {distance(torch.stack(list(media.decode(latents, 64)))):.2f}", flush=True)


if __name__ == "__main__":
    main()

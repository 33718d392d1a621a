"""Encoding: the whole pipeline beside the bare encoder loop, and beside the limit of decoding and resizing.

    python tests/benchmarks/encode.py [--photos FOLDER] [--images 48] [--rounds 3]

Two questions. How much of the encoder's own speed is left when pictures are decoded, resized, collated, written and committed around it?
(SD-sized
AutoencoderKL with random weights at 256 px, against the same batches as ready tensors.) And when the encoder costs nothing, how near
does the
pipeline come to decoding and resizing the same JPEGs in as many threads as there are cores? Contenders take turns in every round; ratios
are formed inside a round.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

from latentkit.builtin import FolderConfig, ImageConfig
from latentkit.contracts import BuildContext, Encoder, InputSpec, LatentLayout, Normalization
from latentkit.encode import EncodeInputs, EncodeSettings, encode_source
from latentkit.encoders.diffusers import DiffusersEncoder
from latentkit.executors.local import LocalExecutor
from latentkit.modalities.image import ImageModality
from latentkit.sources.folder import FolderSource
from latentkit.store.folder import LocalFolder

SIZE = 256


class FreeEncoder:
    """An encoder that costs nothing: 16 KiB a row, always the same."""

    modality = "image"
    input = InputSpec(3)
    layout = LatentLayout("latent", "gaussian", "CHW", 4, 8)
    normalization = Normalization()
    mean = torch.zeros(256, 4, SIZE // 8, SIZE // 8)

    def encode(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"mean": self.mean[: len(batch)], "logvar": self.mean[: len(batch)]}

    def fingerprint(self) -> dict[str, str]:
        return {}


def draw_photos(folder: Path, count: int) -> Path:
    """JPEGs of ImageNet's usual size with photographic detail, for machines without a folder of photographs."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        rough = Image.fromarray(generator.integers(0, 256, (47, 63, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 8, (375, 500, 3))
        Image.fromarray((np.asarray(rough) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=92)
    return folder


def sd_sized_encoder(folder: Path) -> DiffusersEncoder:
    """The SD 1.5 autoencoder's architecture with random weights."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    model.save_pretrained(folder)
    return DiffusersEncoder(folder, None, torch.float32, False, "cpu")


def time_pipeline(source: FolderSource, encoder: Encoder, output: Path, batch_size: int, unit_size: int) -> float:
    """Seconds from source to closed dataset."""
    modality = ImageModality(ImageConfig(size=SIZE), BuildContext(input=encoder.input))
    inputs = EncodeInputs(source, modality, ["plain"], lambda device: encoder, {"encoder.name": "benchmark"})
    settings = EncodeSettings(batch_size=batch_size, unit_size=unit_size, compile=False)
    begun = time.perf_counter()
    encode_source(LocalFolder(output), inputs, LocalExecutor("cpu"), "cpu", settings, "", show_progress=False)
    return time.perf_counter() - begun


def time_bare_encoder(encoder: Encoder, count: int, batch_size: int) -> float:
    """Seconds for the same batches as ready tensors, results dropped."""
    batch = torch.rand(batch_size, 3, SIZE, SIZE) * 2 - 1
    begun = time.perf_counter()
    for _ in range(count // batch_size):
        encoder.encode(batch)
    return time.perf_counter() - begun


def time_decoding(files: list[Path]) -> float:
    """Seconds to decode, convert and resize all files in as many threads as there are cores, and no more."""

    def one(file: Path) -> None:
        with Image.open(file) as image:
            picture = image.convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))

    begun = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, files))
    return time.perf_counter() - begun


def report(title: str, limits: list[float], ours: list[float], count: int) -> None:
    ratio = statistics.median(limit / own for limit, own in zip(limits, ours, strict=True))
    print(f"{title}: limit {count / statistics.median(limits):.2f}/s, pipeline {count / statistics.median(ours):.2f}/s, ratio {ratio:.3f}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--photos", type=Path, help="folder of JPEGs (default: drawn ones of 500 x 375)")
    options.add_argument("--images", type=int, default=48, help="pictures for the SD-sized encoder")
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        photos = given.photos or draw_photos(scratch / "photos", 1000)
        source = FolderSource(FolderConfig(path=str(photos)), BuildContext())
        files = [Path(str(source[index].media)) for index in range(len(source))]
        limits, ours = [], []
        for number in range(given.rounds + 1):
            limits.append(time_decoding(files))
            ours.append(time_pipeline(source, FreeEncoder(), scratch / f"free{number}", 32, 512))
        report(f"free encoder, {len(files)} JPEGs to {SIZE} px", limits[1:], ours[1:], len(files))

        few = scratch / "few"
        few.mkdir()
        for file in files[: given.images]:
            (few / f"{len(list(few.iterdir())):05d}.jpg").symlink_to(file)
        source = FolderSource(FolderConfig(path=str(few)), BuildContext())
        encoder = sd_sized_encoder(scratch / "vae")
        time_bare_encoder(encoder, given.batch, given.batch)
        limits, ours = [], []
        for number in range(given.rounds):
            limits.append(time_bare_encoder(encoder, len(source), given.batch))
            ours.append(time_pipeline(source, encoder, scratch / f"sd{number}", given.batch, given.images // 3))
        title = f"SD-sized AutoencoderKL, fp32, {SIZE} px, batch {given.batch}, {torch.get_num_threads()} threads"
        report(title, limits, ours, len(source))


if __name__ == "__main__":
    main()

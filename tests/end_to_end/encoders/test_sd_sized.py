"""An autoencoder of Stable Diffusion's size: minutes long, so CI leaves it out.

LATENTKIT_TEST_PHOTOS=folder pytest -m slow tests/end_to_end/encoders/test_sd_sized.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch

import latentkit as lk
from latentkit.contracts import BuildContext
from latentkit.modalities.image import ImageModality
from latentkit.modalities.options import ImageConfig
from latentkit.sources.folder import FolderSource
from latentkit.sources.options import FolderConfig

SIZE, BATCH, THREADS = 256, 4, 2


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Stable Diffusion 1.5 with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stored_moments_are_bit_for_bit_those_of_diffusers(
    make_photos: Callable[..., Path], sd_folder: Path, tmp_path: Path
) -> None:
    photos = (
        Path(os.environ["LATENTKIT_TEST_PHOTOS"])
        if "LATENTKIT_TEST_PHOTOS" in os.environ
        else make_photos(8)
    )
    fixed = {"batch_size": BATCH, "threads": THREADS, "preview": 0, "output.unit_size": 8}
    exact = lk.encode(
        photos,
        tmp_path / "fp32",
        encoder=sd_folder,
        size=SIZE,
        overrides={**fixed, "output.dtype": "float32"},
    )
    half = lk.encode(photos, tmp_path / "fp16", encoder=sd_folder, size=SIZE, overrides=fixed)
    source = FolderSource(FolderConfig(path=str(photos)), BuildContext())
    modality = ImageModality(ImageConfig(size=SIZE), BuildContext())
    vae = (
        diffusers.AutoencoderKL.from_pretrained(sd_folder)
        .eval()
        .to(memory_format=torch.channels_last)
    )
    torch.set_num_threads(THREADS)
    for start in range(0, len(source), BATCH):
        rows = [
            next(iter(modality.prepare(source[index]))).tensor
            for index in range(start, min(start + BATCH, len(source)))
        ]
        batch = torch.stack([row for row in rows if isinstance(row, torch.Tensor)]).contiguous(
            memory_format=torch.channels_last
        )
        with torch.inference_mode():
            posterior = vae.encode(batch).latent_dist
        for row in range(len(batch)):
            stored, rounded = exact.moments(start + row), half.moments(start + row)
            assert torch.equal(stored["mean"], posterior.mean[row])
            assert torch.equal(stored["logvar"], posterior.logvar[row])
            assert torch.equal(rounded["mean"], posterior.mean[row].half())
            assert torch.equal(rounded["logvar"], posterior.logvar[row].half())

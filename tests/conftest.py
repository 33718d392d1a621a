"""Small real inputs that many tests share: photographs drawn here, and autoencoders with random weights saved as diffusers folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

SIDE = 48


def draw_picture(number: int, height: int = SIDE, width: int = SIDE) -> Image.Image:
    """A smooth picture that differs from every other number's."""
    rows, columns = np.mgrid[0:height, 0:width]
    phase = number * 0.7
    channels = [127.5 + 127 * np.sin(rows / (5 + c) + columns / (7 - c) + phase * (c + 1)) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


WritePhotos = Callable[..., Path]


@pytest.fixture(scope="session")
def write_photos() -> WritePhotos:
    """Fill a folder with `count` pictures and a caption each; names sort in the order of their numbers."""

    def write(folder: Path, count: int) -> Path:
        folder.mkdir()
        for number in range(count):
            draw_picture(number).save(folder / f"{number:03d}.png")
            (folder / f"{number:03d}.txt").write_text(f"picture number {number}")
        return folder

    return write


@pytest.fixture
def make_photos(tmp_path: Path, write_photos: WritePhotos) -> Callable[..., Path]:
    """A folder of `count` pictures in the test's own folder."""
    return lambda count, name="photos": write_photos(tmp_path / name, count)


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL, f4, 4 channels, with a shift and a scale."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        shift_factor=0.25,
    )
    folder = tmp_path_factory.mktemp("autoencoder-kl")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def taesd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderTiny, f4, deterministic."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
        latent_channels=4,
    )
    folder = tmp_path_factory.mktemp("autoencoder-tiny")
    model.save_pretrained(folder)
    return folder

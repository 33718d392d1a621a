"""A small image autoencoder as its class saves it, and its tensors."""

from __future__ import annotations

import warnings
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

CONFIG = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `save_pretrained` writes."""
    folder = tmp_path_factory.mktemp("weights") / "saved"
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderKL(**CONFIG).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tensors(saved: Path) -> dict[str, Tensor]:
    """What is in it, by name."""
    return load_file(saved / "diffusion_pytorch_model.safetensors")

"""A real Ray cluster of two nodes on this machine, photographs, and a tiny autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray.cluster_utils import Cluster

STORE_BYTES = 80 << 20


@pytest.fixture(scope="session")
def head() -> Iterator[Cluster]:
    """A cluster of one node with one CPU, where `second_node` adds another."""
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def second_node(head: Cluster) -> Iterator[Any]:
    """A node beside the head, gone when the test ends."""
    node = head.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    yield node
    if node in head.worker_nodes:
        head.remove_node(node)


@pytest.fixture
def make_photos(tmp_path: Path) -> Callable[[int], Path]:
    """A folder of `count` pictures, each another."""

    def make(count: int) -> Path:
        folder = tmp_path / "photos"
        folder.mkdir()
        rows, columns = np.mgrid[0:48, 0:48]
        for number in range(count):
            channels = [
                127.5 + 127 * np.sin(rows / (5 + c) + columns / (7 - c) + number * (c + 1))
                for c in range(3)
            ]
            Image.fromarray(np.stack(channels, -1).round().astype(np.uint8)).save(
                folder / f"{number:03d}.png"
            )
        return folder

    return make


@pytest.fixture(scope="session")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny AutoencoderKL with random weights, f4, 4 channels."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )
    folder = tmp_path_factory.mktemp("autoencoder-kl")
    model.save_pretrained(folder)
    return folder

"""The plugin is found, its encoder keeps the contract, and pictures go through it."""

from __future__ import annotations

from pathlib import Path

import latentkit as lk
import pytest
import torch
from latentkit.contracts import BuildContext
from latentkit.errors import EncoderError
from latentkit.kit import discover
from latentkit.testing import EncoderContract
from PIL import Image
from safetensors.torch import save_file

from latentkit_own_encoder.network import Autoencoder
from latentkit_own_encoder.plugin import OwnConfig, latentkit_encoders


def write_weights(path: Path) -> Autoencoder:
    """A file of random weights, and the module that has them."""
    torch.manual_seed(0)
    network = Autoencoder()
    save_file(network.state_dict(), path)
    return network


class TestOwnEncoder(EncoderContract):
    spec = latentkit_encoders()

    def make_config(self, tmp_path: Path) -> OwnConfig:
        write_weights(tmp_path / "weights.safetensors")
        return OwnConfig(model="weights.safetensors")


def test_pictures_become_latents_of_ones_own_module(tmp_path: Path) -> None:
    network = write_weights(tmp_path / "weights.safetensors")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 32), (80 * number, 0, 255)).save(
            tmp_path / "photos" / f"{number}.png"
        )
    recipe = {
        "task": "encode",
        "source": {"use": "folder", "with": {"path": str(tmp_path / "photos")}},
        "modality": {"use": "image", "with": {"size": 32}},
        "encoder": {"use": "own-encoder", "with": {"model": str(tmp_path / "weights.safetensors")}},
        "output": {"path": str(tmp_path / "out"), "dtype": "float32"},
        "batch_size": 2,
    }
    latents = lk.run(recipe)
    blue = torch.tensor([160.0, 0.0, 255.0])[:, None, None].expand(1, 3, 32, 32) / 127.5 - 1
    with torch.inference_mode():
        mean = network.encoder(blue)[0, :4]
    assert torch.allclose(latents.moments(2)["mean"], mean, atol=1e-5)
    assert (tmp_path / "out" / "preview.png").is_file()


def test_a_file_of_other_weights_is_named(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        EncoderError, match=r"other\.safetensors: expected the weights of an Autoencoder"
    ):
        latentkit_encoders().build(
            OwnConfig(model="other.safetensors"), BuildContext(recipe_dir=tmp_path)
        )


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    assert registry.find("encoder", "own-encoder").distribution == "latentkit-own-encoder"
    assert not [
        problem for problem in registry.problems if problem.distribution == "latentkit-own-encoder"
    ]

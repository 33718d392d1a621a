"""A tiny model of every class that diffusers exports, with weights that leave nothing at zero or
one; a small image autoencoder as its class saves it, and its tensors.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from latentkit.contracts import Entry, Prepared, Sample
from latentkit.encoders.diffusers import DiffusersEncoder

MODELS = json.loads(Path(__file__).with_name("models.json").read_text())
ZERO_MEAN, ABOVE_ZERO = ("latents_mean", "running_mean"), (
    "latents_std",
    "running_var",
    "running_std",
)


def perturb(model: Any) -> None:
    """Move every weight and statistic away from what it starts as: zero-initialized layers would
    hide what is before them.
    """
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=draw) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith(ZERO_MEAN):
                buffer.copy_(torch.randn(buffer.shape, generator=draw))
            elif name.endswith(ABOVE_ZERO):
                buffer.copy_(torch.rand(buffer.shape, generator=draw) + 0.5)


class TinyModels:
    """Folders, models and encoders by their name in models.json, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._models: dict[str, Any] = {}
        self._encoders: dict[tuple[str, str], DiffusersEncoder] = {}

    def folder(self, name: str) -> Path:
        """The folder that the class itself saves."""
        folder = self._folder / name
        if not folder.exists():
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
                torch.manual_seed(0)
                config = MODELS[name]["config"]
                model = getattr(diffusers, config["_class_name"]).from_config(config)
                perturb(model)
                model.save_pretrained(folder)
        return folder

    def model(self, name: str) -> Any:
        """The model itself, as diffusers loads it, in eval mode."""
        if name not in self._models:
            self._models[name] = self.load(name)
        return self._models[name]

    def load(self, name: str) -> Any:
        """Another one, for tests that change it."""
        with warnings.catch_warnings(action="ignore"):
            model = getattr(diffusers, MODELS[name]["config"]["_class_name"]).from_pretrained(
                self.folder(name)
            )
        if "Allegro" in name:
            model.enable_tiling()
        return model.eval().requires_grad_(False)

    def encoder(self, name: str, modality: str = "") -> DiffusersEncoder:
        """latentkit's encoder of that folder."""
        if (name, modality) not in self._encoders:
            opened = DiffusersEncoder(
                self.folder(name), None, torch.float32, False, "cpu", modality=modality
            )
            self._encoders[name, modality] = opened
        return self._encoders[name, modality]

    def batch(self, name: str, modality: str = "", rows: int = 2) -> Tensor:
        """Noise in the encoder's range, of the smallest size that shows all of a class; pictures
        for the modality "image".
        """
        taken = self.encoder(name, modality).input
        sizes = MODELS[name]["sizes"]
        sizes = (
            sizes[-2:]
            if modality == "image"
            else sizes if len(sizes) == len(taken.axes) - 1 else [3, *sizes]
        )
        noise = torch.rand(
            (rows, taken.channels, *sizes), generator=torch.Generator().manual_seed(2)
        )
        return taken.range[0] + (taken.range[1] - taken.range[0]) * noise


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("autoencoders"))


class Rows:
    """A source and a modality in one: the rows of a batch, by their number."""

    metrics: Sequence[str] = ()

    def __init__(self, batch: Tensor) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Sample:
        return Sample(str(index), str(index))

    def entries(self) -> Iterator[Entry]:
        return (Entry(str(index)) for index in range(len(self)))

    def prepare(self, sample: Sample) -> Iterator[Prepared]:
        yield Prepared("plain", "bucket", self.batch[int(sample.key)])

    def render(self, tensors: Sequence[Sequence[Tensor]], path: Path) -> None:
        """Nothing is previewed."""


@pytest.fixture(scope="session")
def rows_of() -> type[Rows]:
    """Source and modality of a batch."""
    return Rows


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `save_pretrained` writes of a small AutoencoderKL."""
    folder = tmp_path_factory.mktemp("weights") / "saved"
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            block_out_channels=[8, 16],
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            norm_num_groups=4,
            layers_per_block=1,
            latent_channels=4,
        )
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tensors(saved: Path) -> dict[str, Tensor]:
    """What is in it, by name."""
    return load_file(saved / "diffusion_pytorch_model.safetensors")

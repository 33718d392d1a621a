"""The plugin is found, and each exporter keeps the contract, read by its format's own names."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from latentkit_trainers.plugin import (
    KohyaConfig,
    LightningDitConfig,
    MarConfig,
    RepaConfig,
    latentkit_exporters,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from latentkit.contracts import Config
from latentkit.kit import discover
from latentkit.testing import ExporterContract

NAMES = runpy.run_path(str(Path(__file__).with_name("kit_names.py")))
KEYS, IN_ORDER, LABELS = NAMES["KEYS"], NAMES["IN_ORDER"], NAMES["LABELS"]
SPECS = {spec.name: spec for spec in latentkit_exporters()}

Rows = Iterator[tuple[str, str, Tensor]]


def moments_of(dataset: Any, views: tuple[str, ...], deviates: bool = False) -> Rows:
    """Mean and log-variance (or standard deviation), (2C, h, w) float32, of every row."""
    for index, key in enumerate(dataset.keys):
        view, stored = dataset[index]["view"], dataset.moments(index)
        mean, logvar = stored["mean"].float(), stored["logvar"].float()
        if view in views:
            yield key, view, torch.cat([mean, torch.exp(0.5 * logvar) if deviates else logvar])


class KohyaContract(ExporterContract):
    spec = SPECS["kohya"]
    family: ClassVar[str]
    is_normalized = False
    end = ""

    def make_config(self, tmp_path: Path) -> Config:
        values = {"family": self.family, "posterior": "mean"}
        return KohyaConfig.model_validate(values)

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        if self.is_normalized:
            return super().expected(dataset)
        channels = dataset.layout.channels
        both = moments_of(dataset, ("plain", "hflip"))
        return [(key, view, moments[:channels]) for key, view, moments in both]

    def read(self, folder: Path) -> Rows:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        for picture, said in metadata.items():
            name, (width, height) = picture.rpartition(".")[0], said["image_size"]
            with np.load(folder / f"{name}_{width:04d}x{height:04d}_{self.suffix}.npz") as file:
                found = {key.removesuffix(self._end(file)): file[key] for key in file.files}
            assert found["latents"].dtype == np.float32
            assert found["original_size"].tolist() == [width, height]
            assert found["crop_ltrb"].tolist() == [0, 0, width, height]
            names = {"plain": "latents", "hflip": "latents_flipped"}
            for view, array in names.items():
                if array in found:
                    yield KEYS[name], view, torch.from_numpy(found[array])

    @property
    def suffix(self) -> str:
        return self.family

    def _end(self, file: Any) -> str:
        first: str = file.files[0]
        end = first.removeprefix("latents")
        assert (end == "") == (self.family in ("sd", "sdxl"))
        shape = file[first].shape
        assert end in ("", f"_{shape[1]}x{shape[2]}")
        return end


class TestSd(KohyaContract):
    family = "sd"


class TestSdxl(KohyaContract):
    family = "sdxl"


class TestSd3(KohyaContract):
    family = "sd3"


class TestFlux(KohyaContract):
    family = "flux"
    is_normalized = True


class TestLumina(KohyaContract):
    family = "lumina"
    is_normalized = True


class TestHunyuanImage(KohyaContract):
    family = "hunyuan-image"
    suffix = "hi"


class TestMar(ExporterContract):
    spec = SPECS["mar"]

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return list(moments_of(dataset, ("plain", "hflip")))

    def read(self, folder: Path) -> Rows:
        for file in folder.glob("*/**/*.npz"):
            label, _, name = str(file.relative_to(folder).with_suffix("")).partition("/")
            assert LABELS[KEYS[name]] == int(label)
            with np.load(file) as arrays:
                assert sorted(arrays.files) == ["moments", "moments_flip"]
                yield KEYS[name], "plain", torch.from_numpy(arrays["moments"])
                yield KEYS[name], "hflip", torch.from_numpy(arrays["moments_flip"])

    def make_config(self, tmp_path: Path) -> Config:
        return MarConfig()


class TestRepa(ExporterContract):
    spec = SPECS["repa"]

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return list(moments_of(dataset, ("plain",), deviates=True))

    def read(self, folder: Path) -> Rows:
        labels = json.loads((folder / "vae-sd" / "dataset.json").read_text())["labels"]
        files = sorted((folder / "vae-sd").rglob("*.npy"))
        pictures = sorted((folder / "images").rglob("*.png"))
        assert len(files) == len(pictures) == len(labels)
        for (name, label), file, picture, key in zip(
            labels, files, pictures, IN_ORDER, strict=True
        ):
            assert file == folder / "vae-sd" / name
            assert label == LABELS[key]
            with Image.open(picture) as opened:
                assert (opened.size, opened.mode) == ((16, 16), "RGB")
                assert opened.getpixel((5, 5)) == (len(key), 80, 120)
            yield key, "plain", torch.from_numpy(np.load(file))


class TestRepaWithoutPictures(TestRepa):
    def make_config(self, tmp_path: Path) -> Config:
        return RepaConfig(pictures=False)

    def read(self, folder: Path) -> Rows:
        assert not (folder / "images").exists()
        for file, key in zip(sorted((folder / "vae-sd").rglob("*.npy")), IN_ORDER, strict=True):
            yield key, "plain", torch.from_numpy(np.load(file))


class TestLightningDit(ExporterContract):
    spec = SPECS["lightningdit"]

    def make_config(self, tmp_path: Path) -> Config:
        return LightningDitConfig(samples_per_shard=4, posterior="mean")

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        channels = dataset.layout.channels
        both = moments_of(dataset, ("plain", "hflip"))
        return [(key, view, moments[:channels]) for key, view, moments in both]

    def read(self, folder: Path) -> Rows:
        shards = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
        assert [len(shard["labels"]) for shard in shards] == [4, 2]
        whole = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
        assert whole["labels"].tolist() == [LABELS[key] for key in IN_ORDER]
        stats = torch.load(folder / "latents_stats.pt", weights_only=True)
        for name, value in (
            ("mean", whole["latents"].mean(dim=[0, 2, 3], keepdim=True)),
            ("std", whole["latents"].std(dim=[0, 2, 3], keepdim=True)),
        ):
            assert torch.allclose(stats[name], value, atol=1e-5)
        for place, key in enumerate(IN_ORDER):
            yield key, "plain", whole["latents"][place]
            yield key, "hflip", whole["latents_flip"][place]


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    for name in SPECS:
        assert registry.find("exporter", name).distribution == "latentkit-trainers"
    mine = [one for one in registry.problems if one.distribution == "latentkit-trainers"]
    assert mine == []


def test_a_family_must_be_named() -> None:
    with pytest.raises(ValueError, match="family"):
        KohyaConfig.model_validate({})

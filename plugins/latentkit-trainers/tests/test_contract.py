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
    FastDitConfig,
    KohyaConfig,
    LightningDitConfig,
    MarConfig,
    MusubiConfig,
    RepaConfig,
    latentkit_exporters,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import latentkit as lk
from latentkit import cli
from latentkit.contracts import (
    BuildContext,
    Config,
    ExportItem,
    ExportRow,
    LatentLayout,
    Normalization,
)
from latentkit.errors import StoreError
from latentkit.kit import discover
from latentkit.testing import ExporterContract, copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

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


class TestAnima(KohyaContract):
    family = "anima"
    is_normalized = True


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


class TestFastDit(ExporterContract):
    spec = SPECS["fast-dit"]

    def make_config(self, tmp_path: Path) -> Config:
        return FastDitConfig(posterior="mean")

    def read(self, folder: Path) -> Rows:
        latents, labels = (
            [np.load(file) for file in sorted((folder / f"imagenet256_{name}").iterdir())]
            for name in ("features", "labels")
        )
        names = [(key, view) for key in IN_ORDER for view in ("plain", "hflip")]
        for (key, view), latent, label in zip(names, latents, labels, strict=True):
            assert (label.dtype, label.tolist()) == (np.int64, [LABELS[key]])
            yield key, view, torch.from_numpy(latent[0])


class MusubiContract(ExporterContract):
    spec = SPECS["musubi"]
    tolerance = 2**-8  # bfloat16 is written
    architecture: ClassVar[str]
    code: ClassVar[str]
    start = "latents_1x"
    media, suffix, frames, downscale = "image", ".png", "", 8

    def make_config(self, tmp_path: Path) -> Config:
        return MusubiConfig.model_validate({"architecture": self.architecture})

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return [row for row in super().expected(dataset) if row[1] == "plain"]

    def read(self, folder: Path) -> Rows:
        captions = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(captions) == len(list((folder / "cache").iterdir())) == 6
        flat = {name.replace("/", "_"): key for name, key in KEYS.items()}
        for line in captions:
            name = json.loads(line)[f"{self.media}_path"].removesuffix(self.suffix)
            start = f"{name}_{self.frames}"
            (file,) = (folder / "cache").glob(f"{start}????x????_{self.code}.safetensors")
            ((key, value),) = load_file(file).items()
            assert value.dtype == torch.bfloat16
            assert key == f"{self.start}{value.shape[-2]}x{value.shape[-1]}_bfloat16"
            columns, rows = file.name.removeprefix(start).split("_")[0].split("x")
            sides = tuple(self.downscale * side for side in value.shape[-2:])
            assert (int(rows), int(columns)) == sides
            yield flat[name], "plain", self.take(value)

    def take(self, value: Tensor) -> Tensor:
        return value


class TestZImage(MusubiContract):
    architecture, code = "z-image", "zi"

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        both = moments_of(dataset, ("plain",))
        return [(key, view, moments[:16]) for key, view, moments in both]


class TestQwenImage(MusubiContract):
    architecture, code = "qwen-image", "qi"

    def take(self, value: Tensor) -> Tensor:
        assert value.shape[:2] == (16, 1)
        return value[:, 0]


class TestFlux2(MusubiContract):
    architecture, code = "flux2-dev", "f2d"
    start = "latents_"


class TestMusubiWan(MusubiContract):
    architecture, code = "wan", "wan"
    start, media, suffix, frames = "latents_2x", "video", ".mp4", "00000-005_"


class TestHunyuanVideo(TestMusubiWan):
    architecture, code = "hunyuan-video-1.5", "hv15"

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        both = moments_of(dataset, ("plain",))
        return [(key, view, moments[:32]) for key, view, moments in both]


@pytest.mark.parametrize(("caption", "is_refused"), [("a red sign", False), ('says "stop"', True)])
def test_hunyuan_video_needs_byt5_only_for_quoted_text(
    tmp_path: Path, caption: str, is_refused: bool
) -> None:
    text = {"latent": torch.ones(5, 3)}
    config = MusubiConfig(architecture="hunyuan-video-1.5", text="texts", dtype="float32")
    exporter: Any = SPECS["musubi"].build(config, BuildContext())
    stored = {"mean": torch.zeros(32, 2, 4, 4), "logvar": torch.zeros(32, 2, 4, 4)}
    layout = LatentLayout("latent", "gaussian", "CTHW", 32, (4, 16, 16))
    row = ExportRow("plain", "5x64x64", {}, stored, None, layout, Normalization())
    item = ExportItem(0, "a.mp4", "a", {"plain": row}, {"text": caption}, text=text)
    if is_refused:
        with pytest.raises(StoreError, match=r"quotes \"stop\".*Leave the option text out"):
            exporter.write([item], tmp_path, None)
        return
    exporter.write([item], tmp_path, None)
    found = load_file(tmp_path / "cache" / "a_hv15_te.safetensors")
    assert torch.equal(found["varlen_vl_embed_float32"], torch.ones(3, 5))
    assert found["varlen_byt5_embed_float32"].shape == (0, 1472)


def test_musubi_has_text_embeddings_from_a_second_dataset(tmp_path: Path) -> None:
    images = copy_dataset(
        tmp_path / "images", DatasetShape(channels=16, shift=0.1159, scale=0.3611)
    )
    text = copy_dataset(tmp_path / "text", DatasetShape(("plain",), "CL", channels=5))
    command = ["export", str(images), str(tmp_path / "out"), "--to", "musubi"]
    for option in ("architecture=z-image", f"text={text}", "dtype=float32"):
        command += ["--set", option]
    assert cli.main(command) == 0
    file = tmp_path / "out" / "cache" / "b_a_zi_te.safetensors"
    ((name, value),) = load_file(file).items()
    assert name == "varlen_llm_embed_float32"
    assert torch.equal(value, lk.open(text, posterior="mean")["b/a.png"]["latent"].T)
    assert "first:" not in (tmp_path / "out.toml").read_text()


def test_the_installed_plugin_is_found() -> None:
    registry = discover()
    for name in SPECS:
        assert registry.find("exporter", name).distribution == "latentkit-trainers"
    mine = [one for one in registry.problems if one.distribution == "latentkit-trainers"]
    assert mine == []


def test_a_family_must_be_named() -> None:
    with pytest.raises(ValueError, match="family"):
        KohyaConfig.model_validate({})

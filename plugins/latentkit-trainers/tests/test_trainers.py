"""Each format with one folder of files keeps the contract, and is read by its own names."""

from __future__ import annotations

import hashlib
import json
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from latentkit_trainers.plugin import (
    DiffsynthConfig,
    FinetrainersConfig,
    OnetrainerConfig,
    PixartConfig,
    latentkit_exporters,
)
from PIL import Image
from torch import Tensor

import latentkit as lk
from latentkit import cli
from latentkit.contracts import Config
from latentkit.testing import ExporterContract, copy_dataset
from latentkit.testing.exported_dataset import DatasetShape, made_dataset

NAMES = runpy.run_path(str(Path(__file__).with_name("kit_names.py")))
KEYS, IN_ORDER = NAMES["KEYS"], NAMES["IN_ORDER"]
SPECS = {spec.name: spec for spec in latentkit_exporters()}
TEXT = DatasetShape(("plain",), "CL", channels=5)

Rows = Iterator[tuple[str, str, Tensor]]


def stored(dataset: Any, views: tuple[str, ...] = ("plain",)) -> Iterator[tuple[str, str, Any]]:
    """Mean and log-variance of every row."""
    for index, key in enumerate(dataset.keys):
        if (view := dataset[index]["view"]) in views:
            moments = dataset.moments(index)
            yield key, view, {name: value.float() for name, value in moments.items()}


class TestPixart(ExporterContract):
    spec = SPECS["pixart"]
    tolerance = 2**-10  # float16 is written
    is_multi = False

    def make_config(self, tmp_path: Path) -> Config:
        return PixartConfig(resolution=256, multi_scale=self.is_multi)

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return [
            (key, view, torch.cat([one["mean"], (one["logvar"] / 2).exp()]))
            for key, view, one in stored(dataset)
        ]

    def read(self, folder: Path) -> Rows:
        root = folder / "InternData"
        end = "ms_new" if self.is_multi else "new"
        flat = {name.replace("/", "_"): key for name, key in KEYS.items()}
        for entry in json.loads((root / "data_info.json").read_text(encoding="ascii")):
            name = entry["path"].removesuffix(".png")
            array = np.load(root / f"img_sdxl_vae_features_256resolution_{end}" / f"{name}.npy")
            assert array.dtype == np.float16
            assert (entry["height"], entry["width"], entry["ratio"]) == (256, 256, 1)
            assert entry["sharegpt4v"] == entry["prompt"]
            yield flat[name], "plain", torch.from_numpy(array).float()


def test_pixart_has_the_trainers_buckets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = DatasetShape(channels=4, shift=0.0, scale=0.13025, size_multiple=256)
    latents = copy_dataset(tmp_path / "latents", shape)
    out = tmp_path / "out"
    command = ["export", str(latents), str(out), "--to", "pixart", "--set", "resolution=256"]
    assert cli.main(command) == 2
    assert "it takes latents of one size, and the dataset has 2" in capsys.readouterr().err
    assert cli.main([*command, "--set", "multi_scale=true"]) == 2
    said = capsys.readouterr().err
    assert "it takes other sizes than 256x512; encode again with modality.with.buckets" in said
    assert cli.main([*command, "--set", "multi_scale=true", "--set", "resolution=512"]) == 2
    assert "it takes other sizes than 256x256" in capsys.readouterr().err
    square = copy_dataset(
        tmp_path / "square",
        DatasetShape(channels=4, shift=0.0, scale=0.13025, size_multiple=256, has_two_sizes=False),
    )
    command[1] = str(square)
    assert cli.main([*command, "--set", "multi_scale=true"]) == 0
    assert len(list(out.glob("InternData/*_256resolution_ms_new/*.npy"))) == 6
    assert "type='InternalDataMSSigma'" in (tmp_path / "out.py").read_text()


class FinetrainersContract(ExporterContract):
    spec = SPECS["finetrainers"]
    model: ClassVar[str]
    names: ClassVar[list[str]]

    def make_config(self, tmp_path: Path) -> Config:
        values = {"model": self.model, "text": str(made_dataset(TEXT)), "dtype": "float32"}
        return FinetrainersConfig.model_validate(values)

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return [
            (key, view, torch.cat([one["mean"], one["logvar"]]))
            for key, view, one in stored(dataset)
        ]

    def read(self, folder: Path) -> Rows:
        cache = folder / "finetrainers-precomputed-data"
        assert len(list(cache.iterdir())) == 12
        for number, key in enumerate(IN_ORDER):
            latent, condition = (
                torch.load(cache / f"{name}-{number}.pt", weights_only=True)
                for name in ("latent", "condition")
            )
            assert list(latent) == self.names
            self.check(latent, condition)
            yield key, "plain", latent["latents"][0]

    def check(self, latent: dict[str, Any], condition: dict[str, Tensor]) -> None:
        pass


class TestCogview4(FinetrainersContract):
    model = "cogview4"
    names: ClassVar[list[str]] = ["latents", "original_size", "target_size", "crop_coords"]

    def check(self, latent: dict[str, Any], condition: dict[str, Tensor]) -> None:
        sizes = [8 * side for side in latent["latents"].shape[-2:]]
        assert latent["target_size"].tolist() == latent["original_size"].tolist() == [sizes]
        assert condition["encoder_hidden_states"].shape in ((1, 2, 5), (1, 4, 5))


class TestLtxVideo(FinetrainersContract):
    model = "ltx-video"
    names: ClassVar[list[str]] = [
        *("latents", "latents_mean", "latents_std", "num_frames", "height", "width")
    ]

    def check(self, latent: dict[str, Any], condition: dict[str, Tensor]) -> None:
        assert (latent["latents_mean"] == 0.25).all()
        assert (latent["latents_std"] == 0.5).all()
        assert latent["latents"].shape[2] == latent["num_frames"] == 2
        mask, embedding = condition["encoder_attention_mask"], condition["encoder_hidden_states"]
        assert (embedding.shape, mask.shape) == ((1, 128, 5), (1, 128))
        assert mask.sum() in (2, 4)
        assert not embedding[~mask].any()


class DiffsynthContract(ExporterContract):
    spec = SPECS["diffsynth"]
    model: ClassVar[str]

    def make_config(self, tmp_path: Path) -> Config:
        values = {"model": self.model, "text": str(made_dataset(TEXT)), "dtype": "float32"}
        return DiffsynthConfig.model_validate(values)

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return [row for row in super().expected(dataset) if row[1] == "plain"]

    def read(self, folder: Path) -> Rows:
        for number, key in enumerate(IN_ORDER):
            shared, positive, negative = torch.load(
                folder / "0" / f"{number:08d}.pth", weights_only=True
            )
            latent = shared["input_latents"][0]
            sides = [8 * side for side in latent.shape[-2:]]
            assert [shared["height"], shared["width"]] == sides
            assert not shared.keys() & positive.keys()
            assert not negative
            self.check(shared, positive)
            yield key, "plain", latent

    def check(self, shared: dict[str, Any], positive: dict[str, Any]) -> None:
        assert positive["prompt_emb"].shape[1:] == (positive["prompt_emb_mask"].sum(), 5)


class TestDiffsynthQwenImage(DiffsynthContract):
    model = "qwen-image"


class TestDiffsynthZImage(DiffsynthContract):
    model = "z-image"

    def check(self, shared: dict[str, Any], positive: dict[str, Any]) -> None:
        (embedding,) = positive["prompt_embeds"]
        assert embedding.shape in ((2, 5), (4, 5))


class TestDiffsynthWan(DiffsynthContract):
    model = "wan"

    def check(self, shared: dict[str, Any], positive: dict[str, Any]) -> None:
        assert shared["num_frames"] == 5
        assert positive["context"].shape == (1, 512, 5)


class TestOnetrainer(ExporterContract):
    spec = SPECS["onetrainer"]

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        both = stored(dataset, ("plain", "hflip"))
        return [(key, view, one["mean"]) for key, view, one in both]

    def read(self, folder: Path) -> Rows:
        (concept,) = json.loads((folder / "concepts.json").read_text(encoding="utf-8"))
        data = folder / "data"
        assert concept["path"] == str(data)
        hashed = [concept[name] for name in ("path", "seed", "include_subdirectories", "image")]
        text = json.dumps(hashed, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        group = folder / "cache" / "image" / hashlib.sha256(text.encode()).hexdigest()
        for variation in range(concept["image_variations"]):
            place = group / f"variation-{variation}"
            aggregate = torch.load(place / "aggregate.pt", weights_only=True)
            assert [one["image_path"] for one in aggregate] == sorted(map(str, data.glob("*.png")))
            for number, (one, key) in enumerate(zip(aggregate, IN_ORDER, strict=True)):
                self.check_picture(Path(one["image_path"]), one["crop_resolution"])
                entry = torch.load(place / f"{number}.pt", weights_only=True)
                assert sorted(entry) == ["crop_offset", "latent_image", "original_resolution"]
                assert 8 * entry["latent_image"].shape[2] == one["crop_resolution"][1]
                yield key, ("plain", "hflip")[variation], entry["latent_image"]

    def check_picture(self, file: Path, size: tuple[int, int]) -> None:
        with Image.open(file) as picture:
            assert picture.size[::-1] == size


class TestOnetrainerWithoutPictures(TestOnetrainer):
    def make_config(self, tmp_path: Path) -> Config:
        return OnetrainerConfig(pictures=False)

    def check_picture(self, file: Path, size: tuple[int, int]) -> None:
        assert not file.read_bytes()


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("finetrainers", ["model=wan"], "it takes latents of axes CTHW, and these have CHW"),
        ("diffsynth", ["model=wan"], "it takes latents of axes CTHW, and these have CHW"),
        ("diffsynth", ["model=qwen-image"], "shift -0.7571 (and 15 more)"),
        ("finetrainers", ["model=cogview4"], "finetrainers needs text embeddings"),
        ("diffsynth", ["model=z-image"], "diffsynth needs text embeddings"),
        ("onetrainer", [], "the exporter needs the source that it was made from"),
    ],
)
def test_what_a_trainer_cannot_take_is_refused(
    to: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = DatasetShape(channels=16, shift=0.1159, scale=0.3611)
    latents = copy_dataset(tmp_path / "latents", shape)
    sets = [word for option in options for word in ("--set", option)]
    command = ["export", str(latents), str(tmp_path / "out"), "--to", to, *sets]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_a_text_with_too_many_tokens_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentkit_trainers.diffsynth.WAN_TOKENS", 3)
    shape = DatasetShape(axes="CTHW", channels=16, shift=0.1159, scale=0.3611)
    latents = copy_dataset(tmp_path / "latents", shape)
    command = ["export", str(latents), str(tmp_path / "out"), "--to", "diffsynth"]
    for option in ("model=wan", f"text={made_dataset(TEXT)}", "allow_other_scale=true"):
        command += ["--set", option]
    assert cli.main(command) == 2
    assert "the text embedding has 4 tokens, and the trainer takes 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def test_real_pictures_in_two_sizes_with_odd_captions(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    latents = make_dataset(4, 0.18215, square=False)
    captions = ['a "quoted" cat', "two lines", "an Ärger, 猫 and 🐈", "", "a dog\\", "plain"]
    keys = [f"{folder}/{number}.png" for folder in ("cats", "dogs") for number in range(3)]
    concept, table = tmp_path / "concept", tmp_path / "table"
    assert cli.main(["export", str(latents), str(concept), "--to", "onetrainer"]) == 0
    assert cli.main(["export", str(latents), str(table), "--to", "datasets"]) == 0
    texts = [file.read_text("utf-8") for file in sorted((concept / "data").glob("*.txt"))]
    assert texts == captions
    (group,) = (concept / "cache" / "image").iterdir()
    data = lk.open(latents)
    for number, key in enumerate(keys):
        for variation, view in enumerate(("plain", "hflip")):
            entry = torch.load(group / f"variation-{variation}" / f"{number}.pt", weights_only=True)
            assert torch.equal(entry["latent_image"], data.moments((key, view))["mean"].float())
            assert entry["original_resolution"] == ((200, 300) if number % 2 else (320, 200))
    with Image.open(concept / "data" / "00000001.png") as picture:
        assert picture.size == (192, 128)
    rows = [row for file in table.rglob("*.parquet") for row in pq.read_table(file).to_pylist()]
    assert {row["key"]: row["text"] for row in rows} == {
        key: "two\nlines" if caption == "two lines" else caption
        for key, caption in zip(keys, captions, strict=True)
    }
    assert len(rows) == 12

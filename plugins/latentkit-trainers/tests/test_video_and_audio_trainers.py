"""LTX-2, ai-toolkit, SimpleTuner, stable-audio-tools and NeMo AutoModel: each exporter keeps the
contract, read by its format's own names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
import yaml
from latentkit_trainers.plugin import latentkit_exporters
from latentkit_trainers.simpletuner import check_ratios, describe_crop
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import latentkit as lk
from latentkit import cli
from latentkit.contracts import BuildContext, Config, ExportRow, LatentLayout, Normalization
from latentkit.errors import StoreError
from latentkit.testing import ExporterContract, copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

NAMES = runpy.run_path(str(Path(__file__).with_name("kit_names.py")))
KEYS, IN_ORDER = NAMES["KEYS"], NAMES["IN_ORDER"]
SPECS = {spec.name: spec for spec in latentkit_exporters()}
HALF = 2**-8
"""Precision of bfloat16."""

Rows = Iterator[tuple[str, str, Tensor]]


def load(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def name_in(folder: Path, file: Path) -> str:
    return str(file.relative_to(folder).with_suffix(""))


def make_texts(folder: Path) -> Path:
    """Make a latent dataset of text embeddings of one length, (5, 2)."""
    path = folder / "texts"
    shape = DatasetShape(("plain",), "CL", channels=5, has_two_sizes=False)
    return path if path.exists() else copy_dataset(path, shape)


class PlainContract(ExporterContract):
    """Of a format that holds the plain view, normalized, in half precision."""

    tolerance = HALF
    options: ClassVar[dict[str, Any]] = {}

    def make_config(self, tmp_path: Path) -> Config:
        options = {"posterior": "mean", **self.options}
        return cast(Config, self.spec.config.model_validate(options))

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return [row for row in super().expected(dataset) if row[1] == "plain"]


class TestLtx(PlainContract):
    spec = SPECS["ltx"]

    def read(self, folder: Path) -> Rows:
        assert not (folder / "conditions").exists()
        lines = (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["media_path"] for line in lines] == [f"{k}.mp4" for k in KEYS]
        for file in (folder / "latents").rglob("*.pt"):
            entry = load(file)
            latents = entry.pop("latents")
            height, width = (16, 16) if latents.shape[-1] == 2 else (16, 32)
            assert entry == {
                "num_frames": 2,
                "height": height // 8,
                "width": width // 8,
                "fps": 12.0,
            }
            assert latents.dtype == torch.bfloat16
            yield KEYS[name_in(folder / "latents", file)], "plain", latents


class TestPackedLtx(PlainContract):
    spec = SPECS["ltx"]
    options: ClassVar[dict[str, Any]] = {"packed": True, "dtype": "float32"}

    def read(self, folder: Path) -> Rows:
        for file in (folder / "latents").rglob("*.pt"):
            entry = load(file)
            shape = [entry[name] for name in ("num_frames", "height", "width")]
            latents = entry["latents"].reshape(*shape, 128).permute(3, 0, 1, 2)
            yield KEYS[name_in(folder / "latents", file)], "plain", latents


def test_ltx_has_conditions_from_a_second_dataset(tmp_path: Path) -> None:
    texts = make_texts(tmp_path)
    videos = copy_dataset(tmp_path / "videos", DatasetShape(axes="CTHW", channels=128))
    options = ("--set", f"text={texts}", "--set", "dtype=float32")
    assert cli.main(["export", str(videos), str(tmp_path / "out"), "--to", "ltx", *options]) == 0
    entry = load(tmp_path / "out" / "conditions" / "b" / "a.pt")
    assert torch.equal(
        entry["prompt_embeds"], lk.open(texts, posterior="mean")["b/a.png"]["latent"].T
    )
    assert entry["prompt_attention_mask"].tolist() == [True] * len(entry["prompt_embeds"])
    said = yaml.safe_load((tmp_path / "out.yaml").read_text(encoding="utf-8"))
    assert said == {"data": {"preprocessed_data_root": str(tmp_path / "out")}}


def test_ltx_names_do_not_begin_as_those_of_its_older_format() -> None:
    exporter = SPECS["ltx"].build(SPECS["ltx"].config(), BuildContext())
    names = [exporter.name_of(key) for key in ("latent_1.mp4", "a/latent_1.mp4", "latent_a/1.mp4")]
    assert names == ["latent-1", "a/latent-1", "latent_a/1"]


class TestAiToolkit(PlainContract):
    spec = SPECS["ai-toolkit"]
    options: ClassVar[dict[str, Any]] = {"family": "flux1"}

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        return ExporterContract.expected(self, dataset)

    def read(self, folder: Path) -> Rows:
        pictures = sorted(folder.rglob("*.png"))
        caches = list(folder.rglob("*.safetensors"))
        assert (len(pictures), len(caches)) == (6, 12)
        for picture in pictures:
            key = KEYS[name_in(folder, picture)]
            assert picture.with_suffix(".txt").read_text(encoding="utf-8").startswith(key[:3])
            for view in ("plain", "hflip"):
                file = picture.parent / "_latent_cache" / self.cache_name(picture, view)
                ((name, latent),) = load_file(file).items()
                assert (name, latent.dtype) == ("latent", torch.bfloat16)
                yield key, view, latent

    def cache_name(self, picture: Path, view: str) -> str:
        with Image.open(picture) as opened:
            width, height = opened.size
        text = (
            f'{{"crop_height": {height}, "crop_width": {width}, "crop_x": 0, "crop_y": 0,'
            f' "filename": {json.dumps(picture.name)},'
            + (' "flip_x": true,' if view == "hflip" else "")
            + f' "latent_space_version": "{self.options["family"]}", "latent_version": 1,'
            f' "scale_to_height": {height}, "scale_to_width": {width}}}'
        )
        digest = base64.urlsafe_b64encode(hashlib.md5(text.encode()).digest()).decode()
        return f"{picture.stem}_{digest.replace('=', '')}.safetensors"


class TestBlankAiToolkit(TestAiToolkit):
    options: ClassVar[dict[str, Any]] = {"family": "sdxl", "pictures": False}


class TestSimpleTuner(PlainContract):
    spec = SPECS["simpletuner"]

    def read(self, folder: Path) -> Rows:
        data = folder.parent / "export" / "data"
        indices, metadata = (
            json.loads((data / f"aspect_ratio_bucket_{kind}_latents.json").read_text())
            for kind in ("indices", "metadata")
        )
        ratios = indices["aspect_ratio_bucket_indices"]
        assert {ratio: len(pictures) for ratio, pictures in ratios.items()} == {"1.0": 4, "2.0": 2}
        assert sorted(metadata) == sorted(str(file) for file in data.rglob("*.png"))
        for ratio, pictures in ratios.items():
            for picture in map(Path, pictures):
                with Image.open(picture) as opened:
                    assert [*opened.size] == metadata[str(picture)]["target_size"]
                assert str(metadata[str(picture)]["aspect_ratio"]) == ratio
                name = hashlib.sha256(picture.stem.encode()).hexdigest()
                tree = picture.parent.relative_to(data)
                latent = load(folder / "cache" / tree / f"{name}.pt")
                assert latent.dtype == torch.bfloat16
                yield KEYS[name_in(data, picture)], "plain", latent


def test_simpletuner_takes_one_size_of_each_aspect_ratio() -> None:
    check_ratios(["128x128", "128x256", "256x128"])
    with pytest.raises(StoreError, match="128x128 and 256x256 have the same"):
        check_ratios(["128x128", "128x256", "256x256"])


def test_simpletuner_is_told_where_an_image_was_cut() -> None:
    cut = {"height": 300, "width": 600, "crop": [0, 150, 300, 300]}
    layout = LatentLayout("latent", "gaussian", "CHW", 4, 8)
    row = ExportRow("plain", "128x128", cut, {}, None, layout, Normalization())
    assert describe_crop(row) == {
        "original_size": [600, 300],
        "intermediary_size": [256, 128],
        "crop_coordinates": [0, 64],
        "target_size": [128, 128],
        "aspect_ratio": 1.0,
    }


class TestStableAudio(PlainContract):
    spec = SPECS["stable-audio"]
    tolerance = 1e-6

    def expected(self, dataset: Any) -> list[tuple[str, str, Tensor]]:
        moments = (dataset.moments(index)["mean"].float() for index in range(len(dataset)))
        names = ((dataset[index]["key"], dataset[index]["view"]) for index in range(len(dataset)))
        return [(key, view, mean) for (key, view), mean in zip(names, moments, strict=True)]

    def read(self, folder: Path) -> Rows:
        for file in folder.rglob("*.npy"):
            said = json.loads(file.with_suffix(".json").read_text(encoding="ascii"))
            latent = torch.from_numpy(np.load(file))
            assert said["padding_mask"] == [1] * latent.shape[1]
            assert (said["seconds_start"], said["seconds_total"]) == (0, 3)
            yield said["key"], said["view"], latent


class AutomodelContract(PlainContract):
    spec = SPECS["automodel"]

    def make_config(self, tmp_path: Path) -> Config:
        options = {**self.options, "posterior": "mean", "text": str(make_texts(tmp_path))}
        return cast(Config, self.spec.config.model_validate(options))

    def test_an_export_stays_in_its_folder(self, tmp_path: Path) -> None:
        texts = make_texts(tmp_path / "elsewhere")
        config = self.spec.config.model_validate({**self.options, "text": str(texts)})
        self.make_config = lambda tmp_path: cast(Config, config)  # type: ignore[method-assign]
        (tmp_path / "inside").mkdir()
        super().test_an_export_stays_in_its_folder(tmp_path / "inside")

    def listing(self, folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """What is listed of each sample, and what its file holds."""
        summary = json.loads((folder / "metadata.json").read_text())
        assert (summary["total_items"], len(summary["shards"])) == (6, 1)
        for said in json.loads((folder / summary["shards"][0]).read_text()):
            assert Path(said["cache_file"]).parent.name == said["bucket_id"]
            yield said, load(Path(said["cache_file"]))


class TestAutomodel(AutomodelContract):
    options: ClassVar[dict[str, Any]] = {"model": "flux"}

    def read(self, folder: Path) -> Rows:
        for said, entry in self.listing(folder):
            width, height = said["bucket_resolution"]
            assert entry["latent"].shape[-2:] == (height // 8, width // 8)
            assert entry["latent"].dtype == torch.float16
            assert entry["crop_offset"] == [0, 0]
            assert entry["prompt_embeds"].shape == (1, 2, 5)
            yield entry["image_path"], "plain", entry["latent"]


class TestVideoAutomodel(AutomodelContract):
    options: ClassVar[dict[str, Any]] = {"model": "wan"}

    def read(self, folder: Path) -> Rows:
        for said, entry in self.listing(folder):
            assert entry["deterministic_latents"]
            assert entry["text_embeddings"].shape == (1, 2, 5)
            yield said["image_path"], "plain", entry["video_latents"][0]


def export(folder: Path, shape: DatasetShape, to: str, *options: str) -> int:
    data = copy_dataset(folder / "latents", shape)
    sets = [word for option in options for word in ("--set", option)]
    return cli.main(["export", str(data), str(folder / "out"), "--to", to, *sets])


@pytest.mark.parametrize(
    ("shape", "to", "options", "reason"),
    [
        (DatasetShape(), "ltx", (), "it takes latents of axes CTHW, and these have CHW"),
        (
            DatasetShape(axes="CTHW", channels=16, shift=0.1159, scale=0.3611),
            "ai-toolkit",
            ("family=flux1", "pictures=false"),
            "it takes latents of axes CHW, and these have CTHW",
        ),
        (
            DatasetShape(channels=4, shift=0.0, scale=0.13025),
            "ai-toolkit",
            ("family=sd1", "pictures=false"),
            "0.18215",
        ),
        (DatasetShape(), "stable-audio", (), "it takes latents of axes CL"),
        (
            DatasetShape(channels=16, shift=0.1159, scale=0.3611),
            "automodel",
            ("model=flux",),
            "automodel needs text embeddings",
        ),
    ],
)
def test_what_a_trainer_cannot_read_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: DatasetShape,
    to: str,
    options: tuple[str, ...],
    reason: str,
) -> None:
    assert export(tmp_path, shape, to, *options) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

"""The contract kit on latentkit's own sources, modalities and encoders."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latentkit import builtin
from latentkit.contracts import EncoderSpec, InputSpec, ModalitySpec, Sample, SizeRule, SourceSpec
from latentkit.encoders.options import DiffusersConfig, TinyKLConfig
from latentkit.modalities.options import BucketsConfig, ImageConfig
from latentkit.sources.options import DatasetsConfig, FolderConfig
from latentkit.testing import (
    EncoderContract,
    ModalityContract,
    SourceContract,
    StreamSourceContract,
)

SOURCES: dict[str, SourceSpec] = {spec.name: spec for spec in builtin.latentkit_sources()}
MODALITIES: dict[str, ModalitySpec] = {spec.name: spec for spec in builtin.latentkit_modalities()}
ENCODERS: dict[str, EncoderSpec] = {spec.name: spec for spec in builtin.latentkit_encoders()}


def draw_png(number: int, height: int = 24, width: int = 32) -> bytes:
    """A noisy picture that goes from black to white, as a PNG file."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


# ---------------------------------------------------------------- sources


class TestFolder(SourceContract):
    spec = SOURCES["folder"]

    def make_config(self, tmp_path: Path) -> FolderConfig:
        for number, name in enumerate(("b/2.png", "a/1.PNG", "a/10.png", "zoë.png")):
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw_png(number))
        (tmp_path / "photos" / "b" / "2.txt").write_text("a caption")
        (tmp_path / "photos" / "metadata.jsonl").write_text(
            json.dumps({"file_name": "a/10.png", "score": 0.5, "tags": ["x", "y"]})
        )
        return FolderConfig(path="photos")


class TestSamplePhotos(SourceContract):
    spec = SOURCES["sample-photos"]


def write_parquet(folder: Path, num_files: int) -> None:
    """Parquet files of pictures with captions, three rows each."""
    folder.mkdir()
    for file in range(num_files):
        numbers = range(3 * file, 3 * file + 3)
        columns: dict[str, Any] = {
            "image": [draw_png(number) for number in numbers],
            "text": [f"number {number}" for number in numbers],
            "label": list(numbers),
        }
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library datasets keeps what it reads in the test's own folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("_own_cache")
class TestDatasets(SourceContract):
    spec = SOURCES["datasets"]

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        write_parquet(tmp_path / "rows", 2)
        return DatasetsConfig(path="rows")


@pytest.mark.usefixtures("_own_cache")
class TestDatasetsStream(StreamSourceContract):
    spec = SOURCES["datasets"]

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        write_parquet(tmp_path / "rows", 3)
        return DatasetsConfig(path="rows", streaming=True)


# ---------------------------------------------------------------- modality image


class ImageContract(ModalityContract):
    """Pictures of three shapes, one of them as a path."""

    spec = MODALITIES["image"]
    input = InputSpec(channels=3, sizes={"H": SizeRule(multiple=8), "W": SizeRule(multiple=8)})

    def make_samples(self, tmp_path: Path) -> list[Sample]:
        path = tmp_path / "wide.png"
        path.write_bytes(draw_png(0, 24, 60))
        return [
            Sample("wide", path),
            Sample("tall", draw_png(1, 60, 24)),
            Sample("square", draw_png(2, 40, 40)),
        ]

    def make_bad_sample(self, tmp_path: Path) -> Sample:
        """Cut off in the middle, and a file, so that its path could get into the reason."""
        path = tmp_path / "cut.png"
        path.write_bytes(draw_png(3)[:900])
        return Sample("cut", path)


class TestImage(ImageContract):
    def make_config(self, tmp_path: Path) -> ImageConfig:
        return ImageConfig(size=(16, 24), views=["plain", "hflip"])


class TestImageInBuckets(ImageContract):
    def make_config(self, tmp_path: Path) -> ImageConfig:
        buckets, views = BucketsConfig(area=1024, step=8), ["crop-1", "plain", "hflip-1"]
        return ImageConfig(buckets=buckets, crop="random", crop_scale=(0.5, 1.0), views=views)


class TestImageOfOneChannel(ImageContract):
    input = InputSpec(channels=1, range=(0.0, 1.0))

    def make_config(self, tmp_path: Path) -> ImageConfig:
        return ImageConfig(size=16, crop="none")

    def make_bad_sample(self, tmp_path: Path) -> Sample:
        return Sample("text", b"no picture")


# ---------------------------------------------------------------- encoders


def copy_renormalized(model: Path, copy: Path) -> Path:
    """A copy of a model folder whose config has another scale and shift."""
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps(config | {"scaling_factor": 7.0, "shift_factor": 3.0})
    )
    return copy


class DiffusersContract(EncoderContract):
    """A saved diffusers model; `model` is its folder."""

    spec = ENCODERS["diffusers"]
    model: Path

    def make_config(self, tmp_path: Path) -> DiffusersConfig:
        return DiffusersConfig(model=str(self.model))

    def make_renormalized(self, tmp_path: Path) -> Any:
        config = DiffusersConfig(model=str(copy_renormalized(self.model, tmp_path / "copy")))
        return self.spec.build(config, self.make_context(tmp_path))


class TestAutoencoderKL(DiffusersContract):
    @pytest.fixture(autouse=True)
    def _use_model(self, kl_folder: Path) -> None:
        self.model = kl_folder


class TestAutoencoderKLInHalfPrecision(DiffusersContract):
    tolerance = 0.05  # bfloat16 keeps 8 bits

    @pytest.fixture(autouse=True)
    def _use_model(self, kl_folder: Path) -> None:
        self.model = kl_folder

    def make_config(self, tmp_path: Path) -> DiffusersConfig:
        return DiffusersConfig(model=str(self.model), dtype="bfloat16")


class TestAutoencoderTiny(DiffusersContract):
    @pytest.fixture(autouse=True)
    def _use_model(self, taesd_folder: Path) -> None:
        self.model = taesd_folder


class TestTinyKL(EncoderContract):
    spec = ENCODERS["tiny-kl"]


class TestTinyKLFromAFolder(EncoderContract):
    spec = ENCODERS["tiny-kl"]

    def make_config(self, tmp_path: Path) -> TinyKLConfig:
        """A model with random weights, saved first."""
        self.spec.build(TinyKLConfig(init="random"), self.make_context(tmp_path)).save(
            tmp_path / "model"
        )
        return TinyKLConfig(model="model")

    def make_renormalized(self, tmp_path: Path) -> Any:
        copy_renormalized(tmp_path / "model", tmp_path / "copy")
        return self.spec.build(TinyKLConfig(model="copy"), self.make_context(tmp_path))

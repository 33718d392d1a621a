"""The contract kit on latentkit's own exporters and executors; what they write, read by the
formats' own readers.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import webdataset
from safetensors import safe_open
from torch import Tensor
from webdataset import tariterators

from latentkit import builtin
from latentkit.builtin.exporters import latentkit_exporters
from latentkit.contracts import ExecutorSpec, ExporterSpec
from latentkit.exporters.options import DatasetsConfig, SafetensorsConfig, WebdatasetConfig
from latentkit.testing import ExecutorContract, ExporterContract, copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

EXPORTERS: dict[str, ExporterSpec] = {spec.name: spec for spec in latentkit_exporters()}
EXECUTORS: dict[str, ExecutorSpec] = {spec.name: spec for spec in builtin.latentkit_executors()}


def read_files(folder: Path, name: str) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Line of metadata.jsonl and tensor of each file, by the library safetensors."""
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        labels = json.loads(line)
        with safe_open(folder / labels["file_name"], "pt") as file:
            assert {
                **json.loads(file.metadata()["row"]),
                "file_name": labels["file_name"],
            } == labels
            yield labels, file.get_tensor(name)


class TestSafetensors(ExporterContract):
    spec = EXPORTERS["safetensors"]

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        return (
            (labels["key"], labels["view"], latent)
            for labels, latent in read_files(folder, "latent")
        )

    def test_attributes_stand_in_the_listing(self, tmp_path: Path) -> None:
        _, folder = self.export(tmp_path)
        found = {
            labels["key"]: (labels["text"], labels["label"])
            for labels, _ in read_files(folder, "latent")
        }
        assert found["zoë, 'x'\n.png"] == ("zoë, 'x'\n.png \\ \"'\t", 3)
        assert len(found) == 6

    def test_what_was_done_to_the_values_is_said(self, tmp_path: Path) -> None:
        _, folder = self.export(tmp_path)
        said = json.loads((folder / "latents.json").read_text())
        assert (said["values"], said["normalization"]) == (
            "latent",
            {"shift": 0.25, "scale": 2.0, "fold": {}},
        )
        assert (said["layout"]["kind"], said["layout"]["downscale"]) == ("gaussian", 8)


class TestMoments(ExporterContract):
    spec = EXPORTERS["safetensors"]

    def make_config(self, tmp_path: Path) -> SafetensorsConfig:
        return SafetensorsConfig(values="moments")

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        means, logvars = list(read_files(folder, "mean")), list(read_files(folder, "logvar"))
        # the dataset's encoder says logvar = mean - 1, and float16 is stored
        assert all(
            torch.allclose(mean - 1, logvar, atol=1e-3)
            for (_, mean), (_, logvar) in zip(means, logvars, strict=True)
        )
        return (
            (labels["key"], labels["view"], (mean.float() - 0.25) * 2.0) for labels, mean in means
        )


class TestWebdataset(ExporterContract):
    spec = EXPORTERS["webdataset"]

    def make_config(self, tmp_path: Path) -> WebdatasetConfig:
        return WebdatasetConfig(rows_per_shard=5)

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        shards = sorted(str(path) for path in folder.glob("*.tar"))
        assert [Path(shard).name for shard in shards] == ["000000.tar", "000001.tar", "000002.tar"]
        with contextlib.ExitStack() as opened:  # the library's own loop leaves its files open
            streams = [
                {"url": shard, "stream": opened.enter_context(open(shard, "rb"))}
                for shard in shards
            ]
            for row in webdataset.decode()(
                tariterators.group_by_keys(tariterators.tar_file_expander(streams))
            ):
                assert row["json"]["label"] in range(7)
                yield row["json"]["key"], row["json"]["view"], torch.from_numpy(row["latent.npy"])

    def test_a_shard_has_the_bytes_that_tarfile_writes(self, tmp_path: Path) -> None:
        _, folder = self.export(tmp_path)
        for shard in folder.glob("*.tar"):
            again = io.BytesIO()
            with tarfile.open(shard) as read, tarfile.open(
                fileobj=again, mode="w", format=tarfile.USTAR_FORMAT
            ) as written:
                for entry in read:
                    plain = tarfile.TarInfo(entry.name)
                    plain.size = entry.size
                    written.addfile(plain, read.extractfile(entry))
            assert shard.read_bytes() == again.getvalue()


class TestNamelessWebdataset(ExporterContract):
    """As stable-audio-tools reads pre-encoded audio from tar files."""

    spec = EXPORTERS["webdataset"]

    def make_config(self, tmp_path: Path) -> WebdatasetConfig:
        return WebdatasetConfig(part=None, padding_mask=True)

    def make_dataset(self, folder: Path) -> None:
        copy_dataset(folder, DatasetShape(axes="CL"))

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        with tarfile.open(folder / "000000.tar") as tar:
            parts = {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]
        for name in {name.partition(".")[0] for name in parts}:
            said = json.loads(parts[f"{name}.json"])
            latent = torch.from_numpy(np.load(io.BytesIO(parts[f"{name}.npy"])))
            assert said["padding_mask"] == [1] * latent.shape[1]
            assert said["seconds_total"] == 3
            yield said["key"], said["view"], latent


def load_buckets(folder: Path) -> list[datasets.Dataset]:
    """Every configuration of an export, by the library datasets."""
    path, cache = str(folder), str(folder.parent / "cache")
    names = datasets.get_dataset_config_names(path)
    loaded = [datasets.load_dataset(path, name, cache_dir=cache)["train"] for name in names]
    return [one.with_format("torch") for one in loaded]


class TestDatasets(ExporterContract):
    spec = EXPORTERS["datasets"]

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        return DatasetsConfig(rows_per_file=5)

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        buckets = load_buckets(folder)
        assert {str(bucket.features["latent"]) for bucket in buckets} == {
            f"Array3D(shape=(3, 2, {width}), dtype='float32')" for width in (2, 4)
        }
        for row in (row for bucket in buckets for row in bucket):
            assert isinstance(row["latent"], Tensor)
            assert row["text"] == f"{row['key']} \\ \"'\t"
            yield row["key"], row["view"], row["latent"]


class TestDatasetsOfMoments(ExporterContract):
    spec = EXPORTERS["datasets"]

    def make_config(self, tmp_path: Path) -> DatasetsConfig:
        return DatasetsConfig(values="moments")

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        for row in (row for bucket in load_buckets(folder) for row in bucket):
            assert torch.allclose(row["mean"] - 1, row["logvar"], atol=1e-3)
            yield row["key"], row["view"], (row["mean"] - 0.25) * 2.0


class TestLocal(ExecutorContract):
    spec = EXECUTORS["local"]


class TestAccelerate(ExecutorContract):
    spec = EXECUTORS["accelerate"]


def test_no_folder_holds_more_than_ten_thousand_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentkit.exporters.safetensors.ROWS_PER_FOLDER", 3)
    _, folder = TestSafetensors().export(tmp_path)
    assert [labels["file_name"] for labels, _ in read_files(folder, "latent")][2:4] == [
        "0000/00000002.safetensors",
        "0001/00000003.safetensors",
    ]
    assert len(list(folder.glob("*/*.safetensors"))) == 12

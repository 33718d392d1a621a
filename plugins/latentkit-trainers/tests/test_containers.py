"""Formats that pip packages read: MosaicML streaming and Megatron Energon.

Their readers are run where they are installed: `pip install --no-deps -r tests/readers.txt`, since
the versions that they ask for exclude latentkit's.
"""

from __future__ import annotations

import io
import itertools
import json
import runpy
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from latentkit_trainers.plugin import EnergonConfig, MdsConfig, latentkit_exporters
from PIL import Image
from torch import Tensor

import latentkit as lk
from latentkit import cli
from latentkit.contracts import Config
from latentkit.testing import ExporterContract, copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

NAMES = runpy.run_path(str(Path(__file__).with_name("kit_names.py")))
IN_ORDER, LABELS = NAMES["IN_ORDER"], NAMES["LABELS"]
SPECS = {spec.name: spec for spec in latentkit_exporters()}


def read_mds(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of MDS shards, as the format's description has them."""
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        content = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(content) == shard["raw_data"]["bytes"]
        count = int(np.frombuffer(content, "<u4", 1)[0])
        assert count == shard["samples"]
        offsets = np.frombuffer(content, "<u4", count + 1, 4)
        assert json.loads(content[4 * (count + 2) : offsets[0]]) == {
            name: shard[name] for name in shard if name not in ("raw_data", "samples", "zip_data")
        }
        names = shard["column_names"]
        for start, end in itertools.pairwise(offsets):
            row = content[start:end]
            sizes = np.frombuffer(row, "<u4", len(names))
            ends = 4 * len(names) + np.cumsum(sizes)
            assert ends[-1] == len(row)
            parts = [row[end - size : end] for end, size in zip(ends, sizes, strict=True)]
            yield {
                name: decode(encoding, part)
                for name, encoding, part in zip(
                    names, shard["column_encodings"], parts, strict=True
                )
            }


def decode(encoding: str, part: bytes) -> Any:
    if encoding == "str":
        return part.decode()
    if encoding == "json":
        return json.loads(part)
    if encoding == "bytes":
        return part
    axes, width = divmod(part[0], 4)
    assert width == 2
    shape = np.frombuffer(part, "<u4", axes, 1)
    return np.frombuffer(part, encoding.removeprefix("ndarray:"), -1, 1 + 4 * axes).reshape(shape)


class TestMds(ExporterContract):
    spec = SPECS["mds"]

    def make_config(self, tmp_path: Path) -> Config:
        return MdsConfig(posterior="mean", samples_per_shard=5)

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["index.json", *(f"shard.0000{number}.mds" for number in range(3))]
        for row in read_mds(folder):
            if "label" in row:
                assert row["label"] == LABELS[row["key"]]
                assert row["text"] == f"{row['key']} \\ \"'\t"
            yield row["key"], row["view"], torch.from_numpy(row["latent"].copy())


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, without its images, which want a torchvision that fits torch."""
    monkeypatch.setitem(sys.modules, "streaming.vision", ModuleType("streaming.vision"))
    return pytest.importorskip("streaming")


def test_streaming_reads_what_the_format_holds(tmp_path: Path, streaming: Any) -> None:
    _, folder = TestMds().export(tmp_path)
    data = streaming.StreamingDataset(local=str(folder), batch_size=1)
    expected = list(read_mds(folder))
    assert len(data) == len(expected) == 12
    for index, row in enumerate(expected):
        found = data[index]
        assert np.array_equal(found.pop("latent"), row.pop("latent"))
        assert found == row


class TestEnergon(ExporterContract):
    spec = SPECS["energon"]

    def make_config(self, tmp_path: Path) -> Config:
        return EnergonConfig(posterior="mean", rows_per_shard=5)

    def read(self, folder: Path) -> Iterator[tuple[str, str, Tensor]]:
        counts = json.loads((folder / ".nv-meta" / ".info.json").read_text())["shard_counts"]
        assert counts == {"000000.tar": 5, "000001.tar": 5, "000002.tar": 2}
        split = yaml.safe_load((folder / ".nv-meta" / "split.yaml").read_text())
        assert split["split_parts"]["train"] == [*counts]
        for name, count in counts.items():
            starts = np.fromfile(folder / f"{name}.idx", "<u8").tolist()
            content = (folder / name).read_bytes()
            assert len(starts) == count + 1
            for start, end in itertools.pairwise(starts):  # a sample's bytes are a tar of their own
                with tarfile.open(fileobj=io.BytesIO(content[start:end])) as tar:
                    files: dict[str, Any] = {
                        entry.name.partition(".")[2]: tar.extractfile(entry) for entry in tar
                    }
                    row = json.load(files["json"])
                    latent = np.load(io.BytesIO(files["latent.npy"].read()))
                yield row["key"], row["view"], torch.from_numpy(latent)


@pytest.mark.filterwarnings("ignore")
def test_energon_reads_every_sample(tmp_path: Path) -> None:
    energon: Any = pytest.importorskip("megatron.energon")
    _, folder = TestEnergon().export(tmp_path)

    def take(sample: Any) -> Any:
        return {name: sample[name] for name in ("__key__", "__restore_key__", "latent.npy", "json")}

    cooker = energon.Cooker(energon.stateless(take))
    encoder = type("Encoder", (energon.DefaultTaskEncoder,), {"cookers": (cooker,)})
    data = energon.get_train_dataset(
        str(folder),
        batch_size=None,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=encoder(),
        repeat=False,
    )
    found = [
        (row["json"]["key"], row["json"]["view"], torch.as_tensor(row["latent.npy"]))
        for row in energon.get_loader(data)
    ]
    expected = list(TestEnergon().read(folder))
    assert sorted(row[:2] for row in found) == sorted(row[:2] for row in expected)
    latents = {row[:2]: row[2] for row in found}
    assert all(torch.equal(latents[key, view], latent) for key, view, latent in expected)


def export(latents: Path, to: str, *options: str) -> int:
    sets = [word for option in options for word in ("--set", option)]
    return cli.main(["export", str(latents), str(latents.parent / "out"), "--to", to, *sets])


SQUARE = DatasetShape(channels=4, shift=0.0, scale=0.18215, size_multiple=256, has_two_sizes=False)


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return copy_dataset(tmp_path / "latents", SQUARE)


def test_micro_diffusion_has_its_columns(latents: Path) -> None:
    shape = DatasetShape(("plain",), "CL", channels=5, has_two_sizes=False)
    text = copy_dataset(latents.parent / "text", shape)
    options = ("preset=micro-diffusion", f"text={text}", "posterior=mean", "views=[hflip]")
    assert export(latents, "mds", *options) == 0
    rows = list(read_mds(latents.parent / "out"))
    said = yaml.safe_load((latents.parent / "out.yaml").read_text())["dataset"]
    assert (said["image_size"], said["train"]["cap_emb_dim"]) == (256, 5)
    data, texts = (lk.open(path, posterior="mean", views="all") for path in (latents, text))
    assert len(rows) == 6
    for row, key in zip(rows, IN_ORDER, strict=True):
        assert sorted(row) == ["caption", "caption_latents", "latents_256"]
        latent = np.frombuffer(row["latents_256"], np.float16).reshape(-1, 32, 32)
        expected = data[key, "hflip"]["latent"]
        assert torch.allclose(torch.from_numpy(latent.copy()).float(), expected, atol=1e-3)
        embedding = np.frombuffer(row["caption_latents"], np.float16).reshape(-1, 5)
        expected = texts[key]["latent"].T
        assert torch.allclose(torch.from_numpy(embedding.copy()).float(), expected, atol=1e-3)


def test_mosaicml_has_its_columns_and_streaming_reads_them(
    make_dataset: Callable[..., Path], tmp_path: Path, streaming: Any
) -> None:
    names = ["a", "b/a"]  # as keys of the texts
    latents = make_dataset(4, 0.18215, side=256, names=names)
    shape = DatasetShape(("plain",), "CL", channels=5, has_two_sizes=False)
    text = copy_dataset(tmp_path / "text", shape)
    options = ("preset=mosaicml", f"text={text}", "posterior=mean")
    assert export(latents, "mds", *options) == 0
    rows = streaming.StreamingDataset(local=str(tmp_path / "out"), batch_size=1)
    data, texts = (lk.open(path, posterior="mean", views="all") for path in (latents, text))
    assert len(rows) == len(data) == 4
    found = [rows[index] for index in range(4)]
    wanted = [(f"{name}.png", view) for name in names for view in ("plain", "hflip")]
    for row, (key, view) in zip(found, wanted, strict=True):
        assert sorted(row) == ["caption", "caption_latents", "jpg", "latents_256"]
        with Image.open(io.BytesIO(row["jpg"])) as image:
            assert (image.size, image.mode) == ((256, 256), "RGB")
        for name, expected in (
            ("latents_256", data[key, view]["latent"]),
            ("caption_latents", texts[key]["latent"].T),
        ):
            values = np.frombuffer(row[name], np.float16).reshape(expected.shape)
            assert torch.allclose(torch.from_numpy(values.copy()).float(), expected, atol=2e-3)
    assert [row["caption"] for row in found[::2]] == ['a "quoted" cat', "two lines"]


@pytest.mark.parametrize(
    ("preset", "message"),
    [("micro-diffusion", "needs text embeddings"), ("mosaicml", "needs the source")],
)
def test_a_preset_refuses_what_its_trainer_cannot_read(
    preset: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = copy_dataset(tmp_path / "latents", DatasetShape(channels=4, scale=0.18215, shift=0.0))
    assert export(wide, "mds", f"preset={preset}") == 2
    said = capsys.readouterr().err
    assert "it takes latents of one size" in said
    assert "it takes other sizes than 16x16; encode again with modality.with.buckets.shapes" in said
    square = copy_dataset(tmp_path / "square", SQUARE)
    options = (f"preset={preset}", "allow_other_scale=true")
    assert export(square, "mds", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

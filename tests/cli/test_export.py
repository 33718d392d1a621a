"""`latentkit export`: a dataset in another format, whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import latentkit as lk
from latentkit import cli
from latentkit.contracts import Config, ExporterSpec
from latentkit.plugins import Provided, Registry, discover

WritePhotos = Callable[..., Path]


@pytest.fixture(scope="module")
def latents(
    tmp_path_factory: pytest.TempPathFactory, write_photos: WritePhotos, kl_folder: Path
) -> Path:
    """A dataset of three pictures with captions, and their mirror images."""
    folder = tmp_path_factory.mktemp("export")
    encoder = {"use": "diffusers", "with": {"model": str(kl_folder)}}
    modality = {"use": "image", "with": {"size": 32, "views": ["plain", "hflip"]}}
    source = {"use": "folder", "with": {"path": str(write_photos(folder / "photos", 3))}}
    values = {
        "task": "encode",
        "source": source,
        "modality": modality,
        "encoder": encoder,
        "output": {"path": str(folder / "latents")},
    }
    lk.run({**values, "batch_size": 2, "threads": 1, "preview": 0})
    return folder / "latents"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def export(*arguments: str | Path) -> int:
    return cli.main(["export", *map(str, arguments)])


def test_every_row_is_a_file_with_its_caption(
    latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    before = contents(latents)
    assert export(latents, out, "--to", "safetensors") == 0
    assert capsys.readouterr().out == f"{out}: 6 rows as safetensors\n"
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert [(row["key"], row["view"], row["text"]) for row in rows[:3]] == [
        ("000.png", "plain", "picture number 0"),
        ("000.png", "hflip", "picture number 0"),
        ("001.png", "plain", "picture number 1"),
    ]
    moments = lk.open(latents).moments(2)
    # the model's config says scaling_factor 0.5, shift_factor 0.25
    expected = (moments["mean"].float() - 0.25) * 0.5
    assert torch.allclose(load_file(out / rows[2]["file_name"])["latent"], expected)
    assert contents(latents) == before
    assert os.listdir(out.parent) == ["out"]


def test_options_of_the_format_are_set_one_by_one(latents: Path, tmp_path: Path) -> None:
    assert (
        export(
            latents,
            tmp_path / "out",
            "--to",
            "webdataset",
            "--set",
            "rows_per_shard=4",
            "--set",
            "values=moments",
        )
        == 0
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "000000.tar",
        "000001.tar",
        "latents.json",
    }
    assert json.loads((tmp_path / "out" / "latents.json").read_text())["values"] == "moments"


def test_an_empty_folder_is_filled(latents: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert export(latents, tmp_path / "out", "--to", "safetensors") == 0
    assert (tmp_path / "out" / "metadata.jsonl").exists()


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        ("taken", [], "taken is there already; expected a folder that is missing or empty"),
        ("taken/file", [], "file is there already"),
        ("taken/file/out", [], "can't be written: Not a directory"),
        ("link", [], "link is there already"),
        ("latents/out", [], "lies in the latent dataset"),
        ("s3://bucket/out", [], "expected a local folder to export to"),
        (
            "out",
            ["--set", "rows_per_shard=0"],
            "exporter 'webdataset': rows_per_shard: expected a number of at least 1, got 0",
        ),
        (
            "out",
            ["--set", "rows_per_shart=1"],
            "rows_per_shart: unknown key, did you mean 'rows_per_shard'?",
        ),
        ("out", ["--set", "rows_per_shard"], "expected KEY=VALUE"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    output: str,
    options: list[str],
    message: str,
    latents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("precious")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "latents").symlink_to(latents)
    before = sorted(tmp_path.rglob("*"))
    where = output if "://" in output else tmp_path / output
    assert export(tmp_path / "latents", where, "--to", "webdataset", *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


class HalfExporter:
    """Writes a file and then does what the test says."""

    def __init__(self, then: Callable[[Path], None]) -> None:
        self.then = then

    def export(self, dataset: Any, folder: Path) -> None:
        (folder / "first").write_text("half")
        self.then(folder)


def use_exporter(monkeypatch: pytest.MonkeyPatch, then: Callable[[Path], None]) -> None:
    """Let `--to half` be an exporter that does something."""
    spec = ExporterSpec("half", "half of it", Config, lambda config, context: HalfExporter(then))
    found = discover()
    registry: Registry = replace(found, provided=(*found.provided, Provided(spec, "acme", "1.0")))
    monkeypatch.setattr("latentkit.tasks.export.discover", lambda: registry)


def test_an_export_that_fails_half_way_leaves_nothing(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise ZeroDivisionError("a bug of the plugin")

    use_exporter(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):
        export(latents, tmp_path / "out", "--to", "half")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_message_and_leaves_nothing(
    latents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    use_exporter(monkeypatch, fill)
    assert export(latents, tmp_path / "out", "--to", "half") == 2
    assert "out can't be written: No space left on device" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_an_exporter_that_writes_nothing_is_said(
    latents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_exporter(monkeypatch, lambda folder: (folder / "first").unlink())
    assert export(latents, tmp_path / "out", "--to", "half") == 2
    assert "exporter 'half' wrote nothing" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_two_exports_at_once_are_one_export(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_late(folder: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    use_exporter(monkeypatch, be_late)
    assert export(latents, tmp_path / "out", "--to", "half") == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "theirs"]


def test_a_dataset_without_moments_says_so(
    taesd_folder: Path, write_photos: WritePhotos, tmp_path: Path
) -> None:
    data = lk.encode(
        write_photos(tmp_path / "photos", 2),
        tmp_path / "latents",
        encoder=str(taesd_folder),
        size=32,
    )
    assert (
        export(
            tmp_path / "latents", tmp_path / "out", "--to", "safetensors", "--set", "values=moments"
        )
        == 2
    )
    assert not (tmp_path / "out").exists()
    assert export(tmp_path / "latents", tmp_path / "out", "--to", "safetensors") == 0
    first, _ = sorted((tmp_path / "out").rglob("*.safetensors"))
    assert torch.equal(load_file(first)["latent"], data[0]["latent"])


def test_datasets_loads_by_the_lines_that_the_export_ends_with(
    latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    assert export(latents, tmp_path / "out", "--to", "datasets", "--set", "dtype=float16") == 0
    found: dict[str, Any] = {}
    exec((tmp_path / "out.py").read_text(), found)
    rows = found["data"]
    assert rows["text"][:3] == ["picture number 0", "picture number 0", "picture number 1"]
    assert str(rows.features["latent"]) == "Array3D(shape=(4, 8, 8), dtype='float16')"
    moments = lk.open(latents).moments(2)
    expected = (moments["mean"].float() - 0.25) * 0.5
    assert torch.allclose(rows[2]["latent"], expected, atol=1e-3)
    assert (tmp_path / "out" / "latents.json").exists()


def test_rows_of_many_lengths_are_nested_lists_in_parquet(tmp_path: Path) -> None:
    from datasets import load_dataset

    latents = Path(__file__).parents[1] / "golden" / "v1-ragged"
    assert export(latents, tmp_path / "out", "--to", "datasets") == 0
    cache = str(tmp_path / "cache")
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    data = lk.open(latents, posterior="mean", views="all")
    assert rows["key"] == [data[index]["key"] for index in range(len(data))]
    for index, row in enumerate(rows.with_format("torch")):
        assert torch.equal(row["latent"], data[index]["latent"])
    assert len({row.shape for row in rows.with_format("torch")["latent"]}) > 1

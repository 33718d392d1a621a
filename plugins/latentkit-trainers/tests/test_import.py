"""Trainers' caches become latent datasets: as our exporters write them, and as trainers do."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latentkit_trainers.caches.options import CacheConfig, KohyaCacheConfig, MdsCacheConfig
from latentkit_trainers.plugin import latentkit_sources
from PIL import Image
from safetensors.torch import save_file

import latentkit as lk
from latentkit import cli
from latentkit.kit import discover
from latentkit.testing import SourceContract

SPECS = {spec.name: spec for spec in latentkit_sources()}
CAPTIONS = ['a "quoted" cat', "two lines", "an Ärger, 猫 and 🐈", "plain"]


def draw(seed: int, *shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# ---------------------------------------------------------------- what our exporters write


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("buckets"), False)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("squares"), True)


def make_dataset(folder: Path, is_square: bool) -> Path:
    """Four pictures in two class folders with equal stems, plain and mirrored."""
    for number, caption in enumerate(CAPTIONS):
        below = folder / "photos" / ("cats" if number < 2 else "dogs")
        below.mkdir(parents=True, exist_ok=True)
        shape = (300, 200) if number % 2 else (200, 320)
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize(shape).save(below / f"{number % 2}.png")
        (below / f"{number % 2}.txt").write_text(caption, encoding="utf-8")
    buckets = {"area": 128 * 192, "step": 64, "max": 256}
    size: dict[str, Any] = {"size": 64} if is_square else {"buckets": buckets}
    lk.run(
        {
            "task": "encode",
            "source": {"use": "folder", "with": {"path": str(folder / "photos")}},
            "modality": {"use": "image", "with": {**size, "views": ["plain", "hflip"]}},
            "encoder": {"use": "tiny-kl"},
            "output": {"path": str(folder / "latents")},
            "preview": 0,
        }
    )
    return folder / "latents"


def check_round_trip(latents: Path, folder: Path, name: str, *sets: str) -> None:
    """Export, import, and export again: the same files, to the last bit."""
    options = [part for one in sets for part in ("--set", one)]
    first, back, again = folder / "first", folder / "back", folder / "again"
    assert run("export", latents, first, "--to", name, *options) == 0
    assert run("import", first, back, "--from", name, "--downscale", 8) == 0
    assert run("export", back, again, "--to", name, *options) == 0
    assert content_of(first) == content_of(again)
    assert len(content_of(first)) > 0


@pytest.mark.parametrize("name", ["mar", "repa", "lightningdit"])
def test_export_import_export_gives_the_same_files(
    squares: Path, tmp_path: Path, name: str
) -> None:
    sets = {
        "mar": ["allow_other_scale=true"],
        "repa": ["allow_other_scale=true", "pictures=false"],
        "lightningdit": [],
    }
    check_round_trip(squares, tmp_path, name, *sets[name])


def test_kohya_comes_back_with_buckets_views_sizes_and_captions(
    buckets: Path, tmp_path: Path
) -> None:
    check_round_trip(buckets, tmp_path, "kohya", "family=sd", "allow_other_scale=true")
    back = lk.open(str(tmp_path / "back"), columns=["text"])
    original = lk.open(str(buckets), columns=["text"])
    rows = {(row["key"], row["view"]): row["text"] for row in (back[i] for i in range(len(back)))}
    wanted = (original[index] for index in range(len(original)))
    assert rows == {(row["key"], row["view"]): row["text"] for row in wanted}
    assert sorted(set(back.bucket_names(slice(None)))) == sorted(
        set(original.bucket_names(slice(None)))
    )
    assert back.normalization.scale == 0.18215


def test_mds_comes_back_with_keys_views_and_captions(squares: Path, tmp_path: Path) -> None:
    sets = ["--set", "posterior=mean"]
    assert run("export", squares, tmp_path / "out", "--to", "mds", *sets) == 0
    told = ["--normalized", "--scale", 1]
    assert run("import", tmp_path / "out", tmp_path / "in", "--from", "mds", *told) == 0
    back, original = (
        lk.open(str(folder), posterior="mean", columns=["text"])
        for folder in (tmp_path / "in", squares)
    )
    assert len(back) == len(original) == 8
    for index in range(8):
        found, wanted = back[index], original[index]
        assert (found["key"], found["view"]) == (wanted["key"], wanted["view"])
        assert found["text"] == wanted["text"]
        assert torch.equal(found["latent"], wanted["latent"])


def test_moments_are_those_that_were_exported(squares: Path, tmp_path: Path) -> None:
    original = lk.open(str(squares))
    for name in ("mar", "repa"):
        sets = ["--set", "allow_other_scale=true"]
        sets += ["--set", "pictures=false"] if name == "repa" else []
        assert run("export", squares, tmp_path / name, "--to", name, *sets) == 0
        assert run("import", tmp_path / name, tmp_path / f"{name}-in", "--from", name) == 0
        back = lk.open(str(tmp_path / f"{name}-in"))
        assert back.layout.kind == "gaussian"
        by_view = [
            index
            for index in range(len(original))
            if name == "mar" or original[index]["view"] == "plain"
        ]
        assert len(back) == len(by_view)
        for place, index in enumerate(by_view):
            found, wanted = back.moments(place), original.moments(index)
            assert torch.equal(found["mean"].float(), wanted["mean"].float())
            spreads = [one["logvar"].float().div(2).exp() for one in (found, wanted)]
            assert torch.equal(*spreads)


def test_fast_dit_is_normalized_and_comes_back_raw(squares: Path, tmp_path: Path) -> None:
    sets = ["--set", "allow_other_scale=true", "--set", "posterior=mean"]
    assert run("export", squares, tmp_path / "out", "--to", "fast-dit", *sets) == 0
    assert run("import", tmp_path / "out", tmp_path / "in", "--from", "fast-dit") == 0
    back = lk.open(str(tmp_path / "in"), columns=["label"])
    for index in range(len(back)):
        written = np.load(tmp_path / "out" / "imagenet256_features" / f"{index:08d}.npy")[0]
        torch.testing.assert_close(back[index]["latent"], torch.from_numpy(written))
        assert back[index]["label"] == int(index >= 4)


# ---------------------------------------------------------------- as trainers write them


def write_mar(folder: Path) -> None:
    for label, name in (("n01", "a"), ("n01", "b"), ("n02", "a")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        moments = {"moments": draw(1, 8, 4, 4), "moments_flip": draw(2, 8, 4, 4)}
        np.savez(folder / label / f"{name}.npz", **moments)


def write_repa(folder: Path) -> None:
    (folder / "vae-sd" / "00000").mkdir(parents=True)
    labels = []
    for number in range(3):
        name = f"00000/img-mean-std-{number:08d}.npy"
        array = np.concatenate([draw(number, 4, 4, 4), np.abs(draw(9, 4, 4, 4))])
        np.save(folder / "vae-sd" / name, array)
        labels.append([name, number])
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": labels}))


def write_lightningdit(folder: Path) -> None:
    folder.mkdir()
    for shard in range(2):
        tensors = {
            "latents": torch.from_numpy(draw(shard, 3, 32, 4, 4)),
            "latents_flip": torch.from_numpy(draw(shard + 5, 3, 32, 4, 4)),
            "labels": torch.arange(3),
        }
        save_file(tensors, folder / f"latents_rank00_shard{shard:03d}.safetensors")
    torch.save({"mean": torch.zeros(1), "std": torch.ones(1)}, folder / "latents_stats.pt")


def write_kohya(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True)
    for number, (width, height) in enumerate(((64, 64), (128, 64), (64, 64))):
        shape = (16, height // 8, width // 8)
        end = f"_{shape[1]}x{shape[2]}"
        np.savez(
            folder / "sub" / f"{number}_{width:04d}x{height:04d}_flux.npz",
            **{
                f"latents{end}": draw(number, *shape),
                f"original_size{end}": np.array([width * 3, height * 3]),
                f"crop_ltrb{end}": np.array([0, 0, width, height]),
            },
        )
        (folder / "sub" / f"{number}.txt").write_text(f"caption {number}\n")


def write_mds(folder: Path) -> None:
    """Write micro_diffusion's columns as streaming's MDSWriter lays them out."""
    folder.mkdir()
    columns = {"caption": ("str", None), "latents_256": ("bytes", None), "width": ("int32", 4)}
    samples = []
    for number in range(3):
        values = {
            "caption": f"caption {number}".encode(),
            "latents_256": draw(number, 4, 32, 32, dtype="float16").tobytes(),
            "width": struct.pack("<i", number),
        }
        lengths = [len(values[name]) for name, (_, size) in columns.items() if size is None]
        samples.append(struct.pack("<2I", *lengths) + b"".join(values.values()))
    config = b'{"any": "text"}'
    start = 4 + 4 * (len(samples) + 1) + len(config)
    offsets = np.cumsum([start, *map(len, samples)]).astype(np.uint32)
    head = struct.pack("<I", len(samples)) + offsets.tobytes() + config
    (folder / "shard.00000.mds").write_bytes(head + b"".join(samples))
    shard = {
        "column_names": list(columns),
        "column_encodings": [encoding for encoding, _ in columns.values()],
        "column_sizes": [size for _, size in columns.values()],
        "compression": None,
        "format": "mds",
        "raw_data": {"basename": "shard.00000.mds"},
        "samples": len(samples),
        "version": 2,
        "zip_data": None,
    }
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": [shard]}))


def write_fast_dit(folder: Path) -> None:
    for name in ("imagenet256_features", "imagenet256_labels"):
        (folder / name).mkdir(parents=True)
    for number in range(3):
        np.save(folder / "imagenet256_features" / f"{number}.npy", draw(number, 1, 4, 4, 4))
        np.save(folder / "imagenet256_labels" / f"{number}.npy", np.array([number]))


WRITERS = {
    "mar": write_mar,
    "repa": write_repa,
    "lightningdit": write_lightningdit,
    "kohya": write_kohya,
    "mds": write_mds,
    "fast-dit": write_fast_dit,
}


def import_written(name: str, folder: Path, *options: Any) -> Any:
    WRITERS[name](folder / "cache")
    assert run("import", folder / "cache", folder / "in", "--from", name, *options) == 0
    return lk.open(str(folder / "in"), posterior="mean", columns=COLUMNS[name])


COLUMNS = {
    "mar": ["label"],
    "repa": ["label"],
    "lightningdit": ["label"],
    "kohya": ["text"],
    "mds": ["text", "width"],
    "fast-dit": ["label"],
}


def test_mar_as_the_trainer_writes_it(tmp_path: Path) -> None:
    data = import_written("mar", tmp_path)
    assert list(data.keys) == [key for key in ("n01/a", "n01/b", "n02/a") for _ in range(2)]
    assert [data[index]["label"] for index in range(6)] == ["n01"] * 4 + ["n02"] * 2
    written = torch.from_numpy(draw(2, 8, 4, 4))
    assert data[1]["view"] == "hflip"
    assert torch.equal(torch.cat(list(data.moments(1).values())), written)
    assert data.normalization.scale == 0.2325


def test_repa_as_the_trainer_writes_it(tmp_path: Path) -> None:
    data = import_written("repa", tmp_path)
    std = np.abs(draw(9, 4, 4, 4))
    for index in range(3):
        found = data.moments(index)
        assert data[index]["label"] == index
        assert torch.equal(found["mean"], torch.from_numpy(draw(index, 4, 4, 4)))
        torch.testing.assert_close(found["logvar"].div(2).exp(), torch.from_numpy(std))


def test_lightningdit_as_the_trainer_writes_it(tmp_path: Path) -> None:
    data = import_written("lightningdit", tmp_path, "--downscale", 16)
    assert len(data) == 12
    assert (data.layout.kind, data.layout.channels, data.layout.downscale) == (
        "deterministic",
        32,
        16,
    )
    assert torch.equal(data[7]["latent"], torch.from_numpy(draw(6, 3, 32, 4, 4)[0]))
    assert [data[index]["label"] for index in range(0, 12, 2)] == [0, 1, 2, 0, 1, 2]


def test_kohya_as_the_trainer_writes_it(tmp_path: Path) -> None:
    data = import_written("kohya", tmp_path)
    assert list(data.bucket_names(slice(None))) == ["64x64", "64x128", "64x64"]
    for index in range(3):
        assert data[index]["text"] == f"caption {index}"
        shape = (16, 8, 16 if index == 1 else 8)
        written = torch.from_numpy(draw(index, *shape))  # normalized, as the family is
        torch.testing.assert_close(data[index]["latent"], written)


def test_mds_as_streaming_writes_it(tmp_path: Path) -> None:
    data = import_written("mds", tmp_path)
    assert (data.layout.downscale, data.layout.channels) == (8, 4)
    for index in range(3):
        assert (data[index]["text"], data[index]["width"]) == (f"caption {index}", index)
        written = torch.from_numpy(draw(index, 4, 32, 32, dtype="float16"))
        assert torch.equal(data[index]["latent"], written.float())


def test_fast_dit_as_the_trainer_writes_it(tmp_path: Path) -> None:
    data = import_written("fast-dit", tmp_path)
    for index in range(3):
        assert data[index]["label"] == index
        torch.testing.assert_close(data[index]["latent"], torch.from_numpy(draw(index, 4, 4, 4)))


# ---------------------------------------------------------------- bad input


def test_a_shard_that_is_cut_off_costs_its_last_samples(tmp_path: Path) -> None:
    write_mds(tmp_path / "cache")
    shard = tmp_path / "cache" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert run("import", tmp_path / "cache", tmp_path / "in", "--from", "mds") == 0
    data = lk.open(str(tmp_path / "in"))
    assert list(data.keys) == ["000000000", "000000001"]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_another_format_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "notes.txt").write_text("no cache")
    assert run("import", tmp_path / "cache", tmp_path / "in", "--from", name) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "cache") in said
    assert not (tmp_path / "in").exists()


def test_two_families_in_a_folder_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kohya(tmp_path / "cache")
    arrays = {"latents": draw(0, 4, 8, 8), "original_size": np.array([64, 64])}
    np.savez(tmp_path / "cache" / "x_0064x0064_sd.npz", **arrays)
    command = ["import", tmp_path / "cache", tmp_path / "in", "--from", "kohya"]
    assert run(*command) == 2
    assert "source.with.family=" in capsys.readouterr().err
    assert run(*command, "--set", "source.with.family=sd") == 0
    assert len(lk.open(str(tmp_path / "in"))) == 1


def test_exports_that_need_pictures_refuse_imported_latents(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["--set", "allow_other_scale=true"]
    out = tmp_path / "out"
    assert run("export", squares, out, "--to", "repa", *sets, "--set", "pictures=false") == 0
    assert run("import", out, tmp_path / "in", "--from", "repa") == 0
    assert run("export", tmp_path / "in", tmp_path / "again", "--to", "repa", *sets) == 2
    assert "imported" in capsys.readouterr().err


# ---------------------------------------------------------------- the contract of a source


class CacheContract(SourceContract):
    name: str

    def make_config(self, tmp_path: Path) -> Any:
        WRITERS[self.name](tmp_path / "cache")
        kinds = {"kohya": KohyaCacheConfig, "mds": MdsCacheConfig}
        return kinds.get(self.name, CacheConfig)(path=str(tmp_path / "cache"))


class TestLightningDit(CacheContract):
    name = "lightningdit"
    spec = SPECS["lightningdit"]


class TestKohya(CacheContract):
    name = "kohya"
    spec = SPECS["kohya"]


class TestMds(CacheContract):
    name = "mds"
    spec = SPECS["mds"]


def test_the_plugin_is_found() -> None:
    assert all(discover().find("source", name) for name in WRITERS)

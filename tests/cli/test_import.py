"""`latentkit import` of plain files and tars: values, views, what is known, and bad input."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latentkit as lk
from latentkit import cli
from latentkit.errors import EncoderError
from latentkit.runtime.packed_latents import log_variance, pack_latents, unpack_latents


def run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def draw(seed: int, *shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Four latents of two sizes as .npy, with captions, in nested folders with equal stems."""
    folder = tmp_path / "cache"
    for number in range(4):
        below = folder / ("a" if number < 2 else "b/c")
        below.mkdir(parents=True, exist_ok=True)
        array = draw(number, 4, 4, 4 + 4 * (number % 2), dtype="float16")
        np.save(below / f"{number % 2}.npy", array)
        (below / f"{number % 2}.txt").write_text(f"caption {number}: 猫\n", encoding="utf-8")
    return folder


def open_rows(folder: Path, *columns: str) -> list[Any]:
    data = lk.open(str(folder), posterior="mean", columns=list(columns))
    return [data[index] for index in range(len(data))]


def test_files_become_a_dataset_with_captions_and_buckets(cache: Path, tmp_path: Path) -> None:
    assert run("import", cache, tmp_path / "in", "--scale", 0.5, "--downscale", 8) == 0
    data = lk.open(str(tmp_path / "in"))
    assert list(data.keys) == ["a/0", "a/1", "b/c/0", "b/c/1"]
    assert list(data.bucket_names(slice(None))) == ["32x32", "32x64"] * 2
    assert (data.layout.kind, data.layout.downscale) == ("deterministic", 8)
    for number, row in enumerate(open_rows(tmp_path / "in", "text")):
        assert row["text"] == f"caption {number}: 猫"
        written = draw(number, 4, 4, 4 + 4 * (number % 2), dtype="float16")
        assert torch.equal(row["latent"], torch.from_numpy(written).float() / 2)
    document = json.loads((tmp_path / "in" / "dataset.json").read_text())
    assert document["parts"]["encoder.weights"] == "unknown"
    assert run("verify", tmp_path / "in", "--deep") == 0


def test_importing_again_adds_what_is_new_and_leaves_the_rest(cache: Path, tmp_path: Path) -> None:
    assert run("import", cache, tmp_path / "in") == 0
    units = {file.name: file.read_bytes() for file in (tmp_path / "in" / "units").iterdir()}
    np.save(cache / "new.npy", draw(9, 4, 4, 4, dtype="float16"))
    assert run("import", cache, tmp_path / "in") == 0
    assert len(lk.open(str(tmp_path / "in"))) == 5
    assert all((tmp_path / "in" / "units" / name).read_bytes() == units[name] for name in units)


@pytest.mark.parametrize("ending", ["npz", "pt", "safetensors"])
def test_moments_and_flips_are_found_by_their_names(tmp_path: Path, ending: str) -> None:
    (tmp_path / "cache").mkdir()
    for number in range(2):
        file = tmp_path / "cache" / f"{number}.{ending}"
        names = ("mean", "logvar", "mean_flip", "logvar_flip")
        arrays = {name: draw(place, 4, 4, 4) for place, name in enumerate(names)}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if ending == "npz":
            np.savez(file, **arrays)
        elif ending == "pt":
            torch.save(tensors, file)
        else:
            save_file(tensors, file)
    assert run("import", tmp_path / "cache", tmp_path / "in") == 0
    data = lk.open(str(tmp_path / "in"))
    assert (sorted(data.views), data.layout.kind) == (["hflip", "plain"], "gaussian")
    assert torch.equal(data.moments(1)["logvar"], torch.from_numpy(draw(3, 4, 4, 4)))


def test_bfloat16_and_a_batch_axis_of_one_come_through(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    latent = torch.from_numpy(draw(0, 1, 16, 4, 4)).bfloat16()
    torch.save(latent, tmp_path / "cache" / "a.pt")
    assert run("import", tmp_path / "cache", tmp_path / "in") == 0
    assert torch.equal(open_rows(tmp_path / "in")[0]["latent"], latent[0].float())
    recipe = (tmp_path / "in" / "recipe.yaml").read_text()
    assert "bfloat16" in recipe


def test_stacked_standard_deviations_and_class_folders(tmp_path: Path) -> None:
    (tmp_path / "cache" / "cats").mkdir(parents=True)
    array = np.concatenate([draw(0, 4, 2, 2), np.abs(draw(1, 4, 2, 2))])
    np.save(tmp_path / "cache" / "cats" / "a.npy", array)
    sets = ["--set", "source.with.stacked=std", "--set", "source.with.class_folders=true"]
    assert run("import", tmp_path / "cache", tmp_path / "in", *sets) == 0
    data = lk.open(str(tmp_path / "in"), columns=["label"])
    assert data[0]["label"] == "cats"
    found = data.moments(0)["logvar"].div(2).exp()
    torch.testing.assert_close(found, torch.from_numpy(array[4:]))


def test_normalized_latents_are_stored_raw_and_read_as_they_were(
    cache: Path, tmp_path: Path
) -> None:
    told = ["--normalized", "--scale", 0.3611, "--shift", 0.1159]
    sets = ["--set", "output.dtype=float32"]
    assert run("import", cache, tmp_path / "in", *told, *sets) == 0
    data = lk.open(str(tmp_path / "in"))
    assert (data.normalization.shift, data.normalization.scale) == (0.1159, 0.3611)
    for number, row in enumerate(open_rows(tmp_path / "in")):
        written = draw(number, 4, 4, 4 + 4 * (number % 2), dtype="float16")
        torch.testing.assert_close(row["latent"], torch.from_numpy(written).float())


def test_decode_says_that_the_encoder_is_unknown_unless_it_is_named(
    cache: Path, tmp_path: Path
) -> None:
    assert run("import", cache, tmp_path / "in") == 0
    data = lk.open(str(tmp_path / "in"))
    with pytest.raises(EncoderError, match=r"unknown.*--encoder"):
        data.decode(data[0]["latent"])
    assert run("import", cache, tmp_path / "named", "--encoder", "tiny-kl") == 0
    data = lk.open(str(tmp_path / "named"))
    assert data.decode(data[0]["latent"]).shape == (3, 32, 32)
    assert list(data.bucket_names(slice(None))) == ["32x32", "32x64"] * 2


# ---------------------------------------------------------------- what core exports


@pytest.mark.parametrize("to", ["safetensors", "webdataset"])
@pytest.mark.parametrize("values", ["latent", "moments"])
def test_core_exports_come_back_bit_for_bit(tmp_path: Path, to: str, values: str) -> None:
    source = make_moments(tmp_path)
    first, back, again = (tmp_path / name for name in ("first", "back", "again"))
    sets = ["--set", f"values={values}"]
    assert run("export", source, first, "--to", to, *sets) == 0
    name = {"safetensors": "latent-files", "webdataset": "latent-tars"}[to]
    assert run("import", first, back, "--from", name) == 0
    assert run("export", back, again, "--to", to, *sets) == 0
    assert lk.open(str(back)).normalization == lk.open(str(source)).normalization
    assert sorted(lk.open(str(back)).views) == ["hflip", "plain"]
    files = [file.relative_to(first) for file in first.rglob("*") if file.is_file()]
    same = [file for file in files if file.name != "latents.json"]
    assert len(same) > 0
    assert [file for file in same if (first / file).read_bytes() != (again / file).read_bytes()] == []


def make_moments(folder: Path) -> Path:
    """A latent dataset of three samples with mean and log-variance, plain and mirrored; its scale
    is a power of two, by which dividing and multiplying loses nothing.
    """
    (folder / "moments").mkdir()
    for number in range(3):
        tensors = {
            f"{name}{end}": torch.from_numpy(draw(number, 4, 4, 4, dtype="float16"))
            for name in ("mean", "logvar")
            for end in ("", "_flip")
        }
        save_file(tensors, folder / "moments" / f"{number}.safetensors")
        (folder / "moments" / f"{number}.txt").write_text('a "quoted" ärger 🐈')
    told = ["--scale", 0.25, "--downscale", 8]
    assert run("import", folder / "moments", folder / "source", *told) == 0
    return folder / "source"


def test_tars_of_others_come_with_captions_and_labels(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    with tarfile.open(tmp_path / "cache" / "000.tar", "w") as tar:
        for number in range(2):
            content = io.BytesIO()
            np.save(content, draw(number, 4, 4, 4))
            caption = f"caption {number}".encode()
            for ending, text in (("npy", content.getvalue()), ("txt", caption), ("cls", b"7")):
                entry = tarfile.TarInfo(f"dir/{number}.{ending}")
                entry.size = len(text)
                tar.addfile(entry, io.BytesIO(text))
    assert run("import", tmp_path / "cache", tmp_path / "in", "--from", "latent-tars") == 0
    rows = open_rows(tmp_path / "in", "text", "label")
    assert [(row["key"], row["text"], row["label"]) for row in rows] == [
        ("dir/0", "caption 0", "7"),
        ("dir/1", "caption 1", "7"),
    ]
    assert torch.equal(rows[1]["latent"], torch.from_numpy(draw(1, 4, 4, 4)))


# ---------------------------------------------------------------- bad input


def test_bad_files_are_skipped_and_counted_with_their_reason(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "cut.npy").write_bytes((cache / "a" / "0.npy").read_bytes()[:200])
    (cache / "empty.npy").write_bytes(b"")
    np.save(cache / "other.npy", draw(0, 5, 4, 4, dtype="float16"))
    bad = draw(0, 4, 4, 4)
    bad[0, 0, 0] = np.nan
    np.save(cache / "nan.npy", bad)
    np.save(cache / "pickled.npy", np.array([{"a": 1}]), allow_pickle=True)
    assert run("import", cache, tmp_path / "in") == 0
    assert len(lk.open(str(tmp_path / "in"))) == 4
    capsys.readouterr()
    assert run("inspect", tmp_path / "in", "--skipped") == 0
    said = capsys.readouterr().out
    for name in ("cut", "empty", "other", "nan", "pickled"):
        assert name in said
    assert "not finite" in said
    assert "(5, 4, 4)" in said


def test_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "cache").mkdir()
    torch.save({"latent": Bomb()}, tmp_path / "cache" / "a.pt")
    assert run("import", tmp_path / "cache", tmp_path / "in") == 2
    assert "none of the first 1 samples" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


REFUSED = {
    "unknown format": (["--from", "kohia"], "no format of that name"),
    "a picture source": (["--from", "folder"], "latent-files, latent-tars"),
    "tars": (["--from", "latent-tars"], "no tars"),
    "normalized, no scale": (["--normalized"], "--scale"),
    "shift alone": (["--shift", 1], "give --scale too"),
    "no number": (["--scale", "x"], "expected a number"),
    "zero": (["--scale", 0], "other than 0"),
    "another encoder": (["--encoder", "tiny-kl-16"], "16 channels"),
    "no such tensor": (["--set", "source.with.latent=x"], "no tensor 'x'"),
    "downscale of a video": (["--downscale", "8,8,8"], "or 2 for H, W"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_says_what_to_do_and_writes_nothing(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    options, expected = REFUSED[case]
    assert run("import", cache, tmp_path / "in", *options) == 2
    said = capsys.readouterr().err
    assert expected in said
    assert not (tmp_path / "in").exists()


def test_two_files_of_one_key_are_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torch.zeros(4, 4, 4), cache / "a" / "0.pt")
    assert run("import", cache, tmp_path / "in") == 2
    assert "a/0" in capsys.readouterr().err


def test_an_output_of_other_latents_is_refused(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", cache, tmp_path / "in", "--downscale", 8) == 0
    assert run("import", cache, tmp_path / "in", "--downscale", 16) == 2
    assert "downscale" in capsys.readouterr().err


def test_a_family_refuses_latents_of_unknown_scale(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("import", cache, tmp_path / "in") == 0
    assert "scale isn't known" in capsys.readouterr().err
    assert run("preview", tmp_path / "in", tmp_path / "preview.png") == 2
    assert "unknown" in capsys.readouterr().err


# ---------------------------------------------------------------- the parts


def test_log_variance_gives_the_standard_deviation_back_to_the_last_bit() -> None:
    logvar = torch.linspace(-29, 5, 100_001)
    std = (logvar / 2).exp()
    assert torch.equal((log_variance(std) / 2).exp(), std)


def test_what_is_packed_is_unpacked() -> None:
    views = {"plain": {"latent": torch.rand(2, 3)}, "hflip": {"latent": torch.rand(2, 3)}}
    found, geometry = unpack_latents(pack_latents(views, {"height": 3}))
    assert geometry == {"height": 3}
    assert {name: set(one) for name, one in found.items()} == {
        "plain": {"latent"},
        "hflip": {"latent"},
    }
    assert torch.equal(found["hflip"]["latent"], views["hflip"]["latent"])
    with pytest.raises(ValueError, match="pack_latents"):
        unpack_latents(b"something else")


def test_a_killed_import_goes_on_beside_another_process(tmp_path: Path) -> None:
    """A kill -9 in the middle costs the units in flight; two processes then share the rest."""
    cache = tmp_path / "cache"
    cache.mkdir()
    for number in range(600):
        np.save(cache / f"{number:04d}.npy", draw(number, 4, 8, 8))

    def start(output: Path) -> subprocess.Popen[bytes]:
        words = ["import", str(cache), str(output), "--set", "output.unit_size=10"]
        return subprocess.Popen([sys.executable, "-m", "latentkit", *words])

    assert start(tmp_path / "whole").wait() == 0
    output = tmp_path / "killed"
    process = start(output)
    while len(list(output.glob("units/*.safetensors"))) < 3:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (output / "dataset.json").exists()
    assert [process.wait() for process in (start(output), start(output))] == [0, 0]

    def content(folder: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in folder.glob("units/*.safetensors")}

    assert content(output) == content(tmp_path / "whole")
    assert run("verify", output, "--deep") == 0

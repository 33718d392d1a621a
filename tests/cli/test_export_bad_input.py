"""What goes wrong around an export, for each of core's exporters: a disk that fills, a process that
is killed, rows of other kinds, options out of range.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import latentkit as lk
from latentkit import cli
from latentkit.exporters.safetensors import SafetensorsExporter
from latentkit.exporting.names import make_unique, safe_name, shorten
from latentkit.testing import copy_dataset
from latentkit.testing.exported_dataset import DatasetShape

EXPORTERS = ["safetensors", "webdataset", "datasets"]
RAGGED_INT8 = Path(__file__).parents[1] / "golden" / "v1-ragged"

Mount = Callable[[str], Path]


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    return copy_dataset(tmp_path / "latents")


def export(latents: Path, out: Path, to: str, *options: str) -> int:
    sets = [word for option in options for word in ("--set", option)]
    return cli.main(["export", str(latents), str(out), "--to", to, *sets])


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """What makes a disk of its own of a size, such as "16k", or gives it another size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def change(size: str) -> Path:
        more = ["-o", f"{'remount,' if os.path.ismount(disk) else ''}size={size}"]
        done = subprocess.run(["mount", "-t", "tmpfs", *more, "tmpfs", disk], capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount")
        return disk

    if sys.platform != "linux":
        pytest.skip("needs tmpfs")
    yield change
    if os.path.ismount(disk):
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("to", EXPORTERS)
def test_a_disk_that_fills_ends_the_export_and_one_with_room_goes_on_to_the_same_bytes(
    to: str, latents: Path, mount: Mount, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, disk = latents.parent / "whole", mount("16k")
    assert export(latents, whole, to) == 0
    capsys.readouterr()
    assert export(latents, disk / "out", to) == 2
    said = capsys.readouterr().err
    assert f"out can't be written: {os.strerror(errno.ENOSPC)}; run the same command" in said
    assert said.count("\n") == 1
    assert os.listdir(disk) == [".out.export"]
    mount("10m")
    assert export(latents, disk / "out", to) == 0
    assert contents(disk / "out") == {
        name: content.replace(str(whole).encode(), str(disk / "out").encode())
        for name, content in contents(whole).items()
    }


KILLED = """
import os, signal, sys
from latentkit import cli
from latentkit.exporters.safetensors import SafetensorsExporter

write = SafetensorsExporter.write

def killed(self, items, folder, export):
    def until_the_seventh():
        for item in items:
            if item.number == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
    return write(self, until_the_seventh(), folder, export)

SafetensorsExporter.items_per_part = 3
SafetensorsExporter.write = killed
raise SystemExit(cli.main(["export", *sys.argv[1:3], "--to", "safetensors"]))
"""


def test_a_killed_export_goes_on_to_the_same_bytes(
    latents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = latents.parent / "whole", latents.parent / "out"
    assert export(latents, whole, "safetensors") == 0
    command = [sys.executable, "-c", KILLED, str(latents), str(out)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert not out.exists()
    assert os.listdir(latents.parent / ".out.export" / "records") != []
    monkeypatch.setattr(SafetensorsExporter, "items_per_part", 3, raising=False)
    assert export(latents, out, "safetensors") == 0
    assert contents(out) == contents(whole)
    assert {*os.listdir(latents.parent)} == {"latents", "out", "whole"}


@pytest.mark.parametrize("to", EXPORTERS)
def test_an_unfinished_dataset_is_refused(
    to: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (latents / "dataset.json").unlink()
    assert export(latents, latents.parent / "out", to) == 2
    said = capsys.readouterr().err
    assert "unfinished" in said
    assert said.count("\n") == 1
    assert os.listdir(latents.parent) == ["latents"]


@pytest.mark.parametrize("to", EXPORTERS)
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("views=[side]", "views ['side'] are not in"),
        ("views=[]", "views: expected"),
        ("limit=0", "limit: expected a number of at least 1"),
        ("seed=-1", "seed: expected a number of at least 0"),
        ("dtype=int4", "dtype: expected 'float32'"),
        ("posterior=mode", "posterior: expected 'draw' or 'mean'"),
    ],
)
def test_an_option_out_of_range_is_refused(
    to: str, option: str, message: str, latents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(latents, latents.parent / "out", to, option) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert os.listdir(latents.parent) == ["latents"]


def read_rows(to: str, out: Path, name: str) -> list[Tensor]:
    """A tensor of every row, in order, by NumPy or safetensors."""
    if to == "safetensors":
        return [load_file(file)[name] for file in sorted(out.rglob("*.safetensors"))]
    rows = []
    for shard in sorted(out.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(out, filter="data")
    for file in sorted(out.glob(f"*.{name}.npy")):
        rows.append(torch.from_numpy(np.load(file)))
    return rows


@pytest.mark.parametrize("to", ["safetensors", "webdataset"])
@pytest.mark.parametrize("is_ragged", [True, False])
def test_int8_rows_are_exported_as_the_numbers_that_they_mean(
    to: str, is_ragged: bool, tmp_path: Path
) -> None:
    path = RAGGED_INT8 if is_ragged else copy_dataset(tmp_path / "l", DatasetShape(dtype="int8"))
    data = lk.open(path, posterior="mean", views="all")
    assert export(path, tmp_path / "moments", to, "values=moments") == 0
    assert export(path, tmp_path / "latents", to) == 0
    for name in ("mean", "logvar"):
        found = read_rows(to, tmp_path / "moments", name)
        assert len(found) == len(data)
        for index, value in enumerate(found):
            assert value.dtype == torch.float32
            assert torch.equal(value, data.moments(index)[name])
    latents = read_rows(to, tmp_path / "latents", "latent")
    for index, value in enumerate(latents):
        assert torch.equal(value, data[index]["latent"])
    assert (len({value.shape for value in latents}) > 2) == is_ragged


def test_names_that_are_equal_once_they_are_short_are_told_apart() -> None:
    long = "é" * 200
    names = [safe_name(key) for key in (f"{long}1.png", f"{long}2.png", f"a/{long}.png")]
    assert names == ["é" * 60, "é" * 60, f"a/{'é' * 60}"]
    assert make_unique(names) == ["é" * 60, f"{'é' * 60}-2", f"a/{'é' * 60}"]
    assert shorten("_".join(["x" * 100] * 5)) == "x" * 100 + "_" + "x" * 19

"""What no exporter takes, and a disk that fills, for every exporter that there is."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from latentkit_trainers.plugin import latentkit_exporters

from latentkit import cli
from latentkit.contracts import BuildContext, ExporterSpec
from latentkit.testing import copy_dataset
from latentkit.testing.exported_dataset import DatasetShape, full_shape

SPECS = {spec.name: spec for spec in latentkit_exporters()}
TEXT = DatasetShape(("plain",), "CL", channels=5, has_two_sizes=False)

Export = Callable[..., int]


def options_of(spec: ExporterSpec) -> dict[str, Any]:
    """The first choice of each option that must be given; no pictures, whose source is gone."""
    fields = spec.config.model_fields.items()
    options = {name: get_args(one.annotation)[0] for name, one in fields if one.is_required()}
    return options | ({"pictures": False} if "pictures" in spec.config.model_fields else {})


def full_dataset(name: str, folder: Path, **changes: Any) -> Path:
    """A dataset that an exporter takes, but for the changes."""
    spec = SPECS[name]
    config = spec.config.model_validate(options_of(spec))
    needs = spec.build(config, BuildContext(recipe_dir=folder)).needs
    kept = DatasetShape(**{**vars(full_shape(needs)), **changes})
    return copy_dataset(folder / "latents", kept)


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """What exports tmp_path/latents; gives the exit code."""

    def run(name: str, out: Path, *options: str) -> int:
        given = {**options_of(SPECS[name])}
        if "text" in SPECS[name].config.model_fields:
            if not (tmp_path / "text").exists():
                copy_dataset(tmp_path / "text", TEXT)
            given["text"] = tmp_path / "text"
        sets = [f"{key}={value}" for key, value in given.items()] + [*options]
        words = [word for one in sets for word in ("--set", one)]
        return cli.main(["export", str(tmp_path / "latents"), str(out), "--to", name, *words])

    return run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own with 16 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or mount(folder, "size=16k"):
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def mount(folder: Path, options: str) -> int:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode


def left(folder: Path) -> set[str]:
    return {*os.listdir(folder)} - {"latents", "text", "disk"}


@pytest.mark.parametrize("name", SPECS)
def test_a_full_disk_leaves_nothing_that_looks_whole_and_the_export_goes_on(
    name: str, tmp_path: Path, disk: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    full_dataset(name, tmp_path)
    assert export(name, disk / "out") == 2
    said = capsys.readouterr().err
    assert f"out can't be written: {os.strerror(errno.ENOSPC)}; run the same command" in said
    assert said.count("\n") == 1
    assert os.listdir(disk) == [".out.export"]
    assert mount(disk, "remount,size=10m") == 0
    assert export(name, disk / "out") == 0
    assert not (disk / ".out.export").exists()


@pytest.mark.parametrize("name", SPECS)
def test_an_unfinished_dataset_is_refused(
    name: str, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    (full_dataset(name, tmp_path) / "dataset.json").unlink()
    assert export(name, tmp_path / "out") == 2
    assert "unfinished" in capsys.readouterr().err
    assert left(tmp_path) == set()


@pytest.mark.parametrize("name", SPECS)
def test_videos_and_rows_of_many_lengths_are_no_images(
    name: str, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = SPECS[name]
    config = spec.config.model_validate(options_of(spec))
    if spec.build(config, BuildContext(recipe_dir=tmp_path)).needs.axes != "CHW":
        pytest.skip("takes more than images")
    full_dataset(name, tmp_path, axes="CTHW")
    assert export(name, tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "it takes latents of axes CHW, and these have CTHW; export to a format for" in said
    assert left(tmp_path) == set()


@pytest.mark.parametrize("name", SPECS)
def test_options_out_of_range_are_refused(
    name: str, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    full_dataset(name, tmp_path)
    there = SPECS[name].config.model_fields
    wrong = {
        "limit": ("limit=0", "limit: expected a number of at least 1"),
        "views": ("views=[side]", "views ['side'] are not in"),
        "seed": ("seed=-1", "seed: expected a number of at least 0"),
        "dtype": ("dtype=int4", "dtype: expected"),
        "posterior": ("posterior=mode", "posterior: expected 'draw' or 'mean'"),
    }
    for option, (value, message) in wrong.items():
        if option in there:
            assert export(name, tmp_path / "out", value) == 2
            assert message in capsys.readouterr().err
    assert left(tmp_path) == set()


@pytest.mark.parametrize("name", SPECS)
def test_int8_rows_are_taken_as_the_numbers_that_they_mean(
    name: str, tmp_path: Path, export: Export
) -> None:
    full_dataset(name, tmp_path, dtype="int8")
    assert export(name, tmp_path / "out") == 0


@pytest.mark.parametrize("name", SPECS)
def test_an_output_that_is_there_stays(
    name: str, tmp_path: Path, export: Export, capsys: pytest.CaptureFixture[str]
) -> None:
    full_dataset(name, tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("precious")
    assert export(name, tmp_path / "out") == 2
    assert "out is there already" in capsys.readouterr().err
    assert left(tmp_path) == {"out"}
    assert (tmp_path / "out" / "theirs").read_text() == "precious"

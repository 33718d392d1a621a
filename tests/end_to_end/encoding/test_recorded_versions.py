"""Versions in plans: recorded under the same names, whatever the distribution is called."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import latentkit as lk
from latentkit.encoding.make_plan import library_versions
from latentkit.store.open_folder import open_folder
from latentkit.store.plan import plan_name, read_plan, write_plan

FIXED = {"batch_size": 2, "threads": 1, "output.unit_size": 2, "preview": 0}


def test_the_package_stands_under_its_import_name() -> None:
    assert list(library_versions()) == ["latentkit", "torch", "diffusers", "pillow"]
    assert library_versions()["latentkit"] == lk.__version__


def test_a_run_that_an_earlier_version_began_goes_on_and_says_so(
    make_photos: Callable[..., Path],
    kl_folder: Path,
    tmp_path: Path,
    begun: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos, output = make_photos(4), tmp_path / "out"
    whole = lk.encode(photos, tmp_path / "whole", encoder=kl_folder, size=32, overrides=FIXED)
    with begun():
        lk.encode(photos, output, encoder=kl_folder, size=32, overrides=FIXED)
    folder = open_folder(str(output))
    plan = read_plan(folder, 0)
    earlier = {**plan.settings.versions, "latentkit": "0.0.9"}
    (output / plan_name(0)).unlink()
    write_plan(folder, replace(plan, settings=replace(plan.settings, versions=earlier)))
    capsys.readouterr()

    data = lk.encode(photos, output, encoder=kl_folder, size=32, overrides=FIXED)
    assert f"latentkit 0.0.9 then, {lk.__version__} now" in capsys.readouterr().err
    assert read_plan(folder, 0).settings.versions == earlier
    assert data.keys == whole.keys
    assert torch.equal(data.moments(3)["mean"], whole.moments(3)["mean"])

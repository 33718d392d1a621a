"""Ragged and masked rows in real processes: killed and gone on with, several at once, from child
processes, at a URL.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from verified import verify_dataset

import latentkit as lk
from latentkit.store.index import committed_units
from latentkit.store.local_folder import LocalFolder

COUNT = 120
UNITS = COUNT // 4


@pytest.fixture
def recipe(waves: Any) -> Callable[..., dict[str, Any]]:
    def make(output: Any, ragged: bool = True, **modality: Any) -> dict[str, Any]:
        return {
            "task": "encode",
            "source": {"use": "waves", "with": {"count": COUNT}},
            "modality": {"use": "waves", "with": {"pad": "16" if ragged else "all", **modality}},
            "encoder": {"use": "waves", "with": {"ragged": ragged, "takes_mask": True}},
            "output": {"path": str(output), "unit_size": 4},
            "batch_size": 3,
            "threads": 1,
            "compile": False,
            "preview": 0,
            "max_bad": 0.2,
        }

    return make


def start(values: dict[str, Any], file: Path) -> subprocess.Popen[bytes]:
    file.write_text(yaml.safe_dump(values))
    return subprocess.Popen(
        [sys.executable, "-m", "latentkit", "run", str(file)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = [folder / "dataset.json", *folder.glob("units/*"), *folder.glob("index/*")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("ragged", [True, False])
def test_killed_and_shared_runs_end_bit_identical(
    recipe: Any, tmp_path: Path, ragged: bool
) -> None:
    alone, killed = tmp_path / "alone" / "out", tmp_path / "killed" / "out"
    lk.run(recipe(alone, ragged))
    process = start(recipe(killed, ragged), tmp_path / "killed.yaml")
    while process.poll() is None and len(committed_units(LocalFolder(killed))) < 3:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert 3 <= len(committed_units(LocalFolder(killed))) < UNITS
    pair = [start(recipe(killed, ragged), tmp_path / f"{number}.yaml") for number in range(2)]
    assert [process.wait() for process in pair] == [0, 0]
    assert contents(killed) == contents(alone)
    assert not verify_dataset(killed).damage


def test_child_processes_prepare_the_same(recipe: Any, tmp_path: Path) -> None:
    lk.run(recipe(tmp_path / "threads"))
    lk.run(recipe(tmp_path / "processes", prepare_in="processes"))
    names = [f"units/{name}.safetensors" for name in committed_units(LocalFolder(tmp_path / "threads"))]
    data = [lk.open(tmp_path / name, posterior="mean") for name in ("threads", "processes")]
    assert len(names) == UNITS
    for first, second in zip(*(dataset.batches(50) for dataset in data), strict=True):
        assert torch.equal(first["latent"], second["latent"])
        assert torch.equal(first["latent_mask"], second["latent_mask"])


def test_a_url_gives_what_a_folder_gives(recipe: Any, tmp_path: Path, s3_server: Any) -> None:
    local, remote = lk.run(recipe(tmp_path / "out")), lk.run(recipe("s3://bucket/out"))
    cached = lk.open("s3://bucket/out", cache=tmp_path / "cache")
    for first, second, third in zip(
        local.batches(50), remote.batches(50), cached.batches(50), strict=True
    ):
        assert torch.equal(first["latent"], second["latent"])
        assert torch.equal(first["latent"], third["latent"])
        assert torch.equal(first["latent_mask"], third["latent_mask"])
    cached.will_need(np.arange(len(cached)), 0)
